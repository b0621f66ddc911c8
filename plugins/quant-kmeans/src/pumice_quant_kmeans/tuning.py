"""Centroids fine-tuned by gradient, the codes staying what they are (Han et al., Deep Compression, section 3.3).

A weight is s t[q], so that the gradient of a centroid is the sum of those of its members,

    dL/dt[j] = sum over q = j of s dL/dw,      L = sum over samples |y - y0|^2 / |y0 - mean y0|^2

with y0 the outputs of the original network: no labels are needed. Steps are Adam's, in units of each table's largest
entry; what is kept is the best of all steps, the start included, judged on a quarter of the samples that no step sees:
tables that are fitted to few samples soon know these and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.autograd import Tape
from pumice.model import add_initializer, clone, remove_unread, replace_input
from pumice.plan import Plan, compile_plan
from pumice.quantize.weight_matrices import weight_matrices
from pumice.registry import registry

if TYPE_CHECKING:
    from pumice.quantize.context import QuantizeContext

Arrays = dict[str, NDArray[Any]]
SAMPLES = 64
RATE = 2e-3
"""Of a step, as a share of the largest entry of a table."""
DECAYS, EPSILON = (0.9, 0.99), 1e-12
PASSES = 8
"""Steps between two judgements."""
PART = 4
"""One sample of so many is put aside for judging."""


def tune(original: ir.Model, changed: ir.Model, context: QuantizeContext, steps: int) -> str:
    """Fine-tune the tables of `changed`, in place; returns what it gained.

    Raises:
        UnsupportedOp: an operator between a table and the outputs has no gradient.
    """
    tables = _tables(original, changed)
    work = _in_float(changed, tables)
    plan = compile_plan(work, ops=registry().ops, kernels=registry().kernels)
    outputs = [value.name or "" for value in work.graph.outputs if value.dtype == ir.DataType.FLOAT]
    tape, reference = Tape(plan, list(tables), outputs=outputs), context.runtime.open(clone(original))
    samples = [(feeds, _targets(reference.run(feeds), outputs)) for feeds in context.feeds(SAMPLES)]
    judged = samples[PART - 1 :: PART] or samples
    seen = [sample for number, sample in enumerate(samples) if number % PART < PART - 1]
    descent = _Descent({name: _constant(value) for name, value in tables.items()})
    first = best = _lost(plan, judged, descent.tables)
    found = descent.tables
    with context.progress.task("tune centroids", steps) as advance:
        for step in range(steps):
            feeds, targets = seen[step % len(seen)]
            outcome, pull = tape.forward({**feeds, **descent.tables})
            descent.step(pull({name: 2.0 * (outcome[name] - y) * factor for name, (y, factor) in targets.items()}))
            if step % PASSES == PASSES - 1 or step == steps - 1:
                lost = _lost(plan, judged, descent.tables)
                best, found = (lost, descent.tables) if lost < best else (best, found)
            advance()
    for name, value in tables.items():
        assert value.const_value is not None
        value.const_value = ir.tensor(_as_stored(found[name], value.const_value.numpy()), name=name)
    which = "that it learned from, too few to put some aside" if judged is samples else "that it did not learn from"
    return (
        f"fine-tuning the centroids took the noise of the outputs from {first:.3g} to {best:.3g} of the signal, on "
        f"{len(judged)} samples {which}"
    )


def _tables(original: ir.Model, changed: ir.Model) -> dict[str, ir.Value]:
    held = changed.graph.initializers
    names = [f"{matrix.value.name}/table" for matrix in weight_matrices(iter(original.graph))]
    return {name: held[name] for name in names if name in held}


def _in_float(changed: ir.Model, tables: Mapping[str, ir.Value]) -> ir.Model:
    """A copy in which tables of narrow types are read as float32 of the same numbers, under the same names."""
    work = clone(changed)
    for name in tables:
        value = work.graph.initializers[name]
        if value.dtype == ir.DataType.FLOAT:
            continue
        real = _constant(value)
        readers = [use.node.outputs[0] for use in value.uses()]  # casts to float32
        made = add_initializer(work, name, real)
        for cast in readers:
            for use in list(cast.uses()):
                replace_input(use.node, use.idx, made)
        remove_unread(work)
        made.name = name
    return work


def _constant(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def _as_stored(table: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    if like.dtype != np.int8:
        return np.asarray(table, like.dtype)
    return np.asarray(np.clip(np.rint(table), -127, 127), np.int8)


def _targets(outputs: Mapping[str, NDArray[Any]], names: list[str]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """The original's outputs and one over their signal."""
    return {name: (outputs[name], _inverse_signal(outputs[name])) for name in names}


def _inverse_signal(output: NDArray[Any]) -> NDArray[Any]:
    wide = output.astype(np.float64)
    signal = np.sum((wide - wide.mean()) ** 2) if wide.size > 1 else np.sum(wide**2)
    return np.asarray(1.0 / max(float(signal), 1e-30), np.float32)


def _lost(plan: Plan, samples: list[tuple[Arrays, Any]], tables: Arrays) -> float:
    total = 0.0
    for feeds, targets in samples:
        outputs = plan.run({**feeds, **tables})
        total += sum(float(np.sum((outputs[name] - y) ** 2) * factor) for name, (y, factor) in targets.items())
    return total / len(samples)


class _Descent:
    """Adam on the tables."""

    def __init__(self, tables: Arrays) -> None:
        self.tables, self.count = tables, 0
        self.rates = {name: RATE * float(np.abs(table).max()) for name, table in tables.items()}
        self.moments = {name: np.zeros((2, *table.shape)) for name, table in tables.items()}

    def step(self, gradients: Mapping[str, NDArray[Any]]) -> None:
        self.count += 1
        moved = {}
        for name, table in self.tables.items():
            gradient, kept = gradients[name].astype(np.float64), self.moments[name]
            for power, decay in enumerate(DECAYS):
                kept[power] = decay * kept[power] + (1 - decay) * gradient ** (power + 1)
            first, second = (kept[power] / (1 - decay**self.count) for power, decay in enumerate(DECAYS))
            moved[name] = (table - self.rates[name] * first / (np.sqrt(second) + EPSILON)).astype(np.float32)
        self.tables = moved
