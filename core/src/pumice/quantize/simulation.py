"""Simulation: the integers that a runtime computes for a quantized model, known without that runtime.

The simulator is a plan of the *fused* model (see `fusion`), whose integer operators round as ONNX Runtime's do:
y = sat(rint(sum * multiplier) + z) with sums in 32 bits, the multiplier in float32 and ties to even. `compare_integers`
holds it to that: every integer tensor of a model (what QuantizeLinear, DynamicQuantizeLinear and the integer products
write) is computed by the runtime, which may fuse what it likes, and by the plan, each *from the runtime's own integers
before it*, so that a difference belongs to the layer in which it arises.

Between integers and the next integers lies integer arithmetic alone, which must agree bit for bit, or also operators on
real numbers (a LayerNormalization, a Sigmoid), whose last bits differ from runtime to runtime. A real number that falls
half-way between two integers, but for these last bits, may then be rounded to the other one. A `LayerDifference` names
those operators and says how close to half-way the numbers were, and how far apart the runtime's real numbers and the
plan's from the same integers: a normalisation by a small variance makes more than last bits of them.

    python -m pumice.quantize.simulation model.int8.onnx --data samples/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, clone, constant, load
from pumice.ops.quantize import aligned_to
from pumice.plan import Plan, compile_plan
from pumice.quantize.fusion import MOVES, fused
from pumice.quantize.saturation import saturating_kernels
from pumice.registry import registry
from pumice.strategy import Runtime

Feeds = Mapping[str, NDArray[Any]]

TIE = 0.02
"""Steps from half-way within which the last bits of a float32 computation may decide about the rounding."""
APART = 1.0
"""Steps between two real numbers up to which they are the same number computed twice."""
FEEDBACK = frozenset({"DynamicQuantizeLSTM"})
"""Operators that round their state at every step: a rounding that falls the other way changes all that follow."""


@attrs.frozen(kw_only=True)
class LayerDifference:
    """How far the simulated integers of one tensor are from the runtime's, over all the feeds."""

    tensor: str
    node: str
    """The node of the fused model that computes it."""
    op: str
    elements: int
    """Elements compared."""
    steps: int
    """Largest difference between two integers."""
    share: float
    """Share of the elements that differ."""
    float_ops: tuple[str, ...]
    """Operators that round real numbers between the integers before and this tensor; none: integer arithmetic alone."""
    from_tie: float
    """Largest distance from half-way between two integers, in steps, of a real number that was rounded differently."""
    apart: float
    """Largest distance, in steps, between such a number and the runtime's own from the same integers."""

    @property
    def explained(self) -> bool:
        """Whether there is no difference, or one for which operators on real numbers account.

        They do if half-way lies between the two numbers, or as near as last bits, or roundings feed on roundings.
        """
        decided = self.from_tie < TIE + self.apart and self.apart < APART
        last_bits = self.steps == 1 and bool(self.float_ops) and decided
        return self.steps == 0 or last_bits or not FEEDBACK.isdisjoint(self.float_ops)


def simulate(model: ir.Model, outputs: Sequence[str] | None = None, *, pair_saturation: bool = False) -> Plan:
    """The plan that computes the integers of ONNX Runtime on a CPU with VNNI (or, with `pair_saturation`, without).

    Args:
        model: a quantized model, with Q and DQ or with integer operators; left unchanged.
        outputs: as for `compile_plan`; names of integer tensors are those of the model.
        pair_saturation: add pairs of 8-bit products in 16 bits, with saturation (see `saturation`).
    """
    asked = clone(model)
    _read(asked, outputs or ())
    return _compiled(fused(asked), outputs, pair_saturation)


def _read(model: ir.Model, names: Iterable[str]) -> None:
    """Let the model answer with these values too, so that none of them is fused away."""
    wanted = set(names) - {str(value.name) for value in model.graph.outputs}
    model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in wanted)


def compare_integers(
    model: ir.Model, feeds: Iterable[Feeds], runtime: Runtime, *, pair_saturation: bool = False
) -> list[LayerDifference]:
    """Every integer tensor of a quantized model, simulated and computed by a runtime, in graph order.

    Args:
        model: a quantized model, with Q and DQ or with integer operators; left unchanged.
        feeds: inputs to run it on.
        runtime: what to compare with.
        pair_saturation: simulate a CPU without VNNI.
    """
    tensors = integer_tensors(model)
    session = runtime.open(clone(model), outputs=tensors)
    alone, layers = _layers_alone(fused(model), tensors)
    sources = dict.fromkeys(layer.source for layer in layers if layer.source is not None)
    plan = _compiled(alone, [*tensors, *sources], pair_saturation)
    tapped = runtime.open(_layers_alone(clone(model), tensors)[0], outputs=list(sources)) if sources else None
    for feed in feeds:
        theirs = session.run(feed)
        given = {**feed, **{_given(name): theirs[name] for name in tensors}}
        ours = plan.run(given)
        rounded = [layer for layer in layers if layer.compare(ours, theirs) and layer.source is not None]
        if rounded and tapped is not None:
            real = tapped.run(given)
            for layer in rounded:
                layer.look_closer(ours, theirs, real)
    return [layer.difference() for layer in layers]


def integer_tensors(model: ir.Model) -> list[str]:
    """Names of the tensors that hold computed integers, and of the scales that are found while the model runs."""
    writers = (node for node in model.graph if _writes_integers(node))
    return [str(value.name) for node in writers for value in node.outputs if value.name]


def _writes_integers(node: ir.Node) -> bool:
    if node.op_type.startswith(("QLinear", "QGemm")):
        return node.outputs[0].dtype in (ir.DataType.UINT8, ir.DataType.INT8)
    return node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}


def _compiled(model: ir.Model, outputs: Sequence[str] | None, pair_saturation: bool) -> Plan:
    """With the kernels that compute exactly what the reference does: those of integers."""
    exact = [kernel for kernel in registry().kernels if kernel.rtol == kernel.atol == 0]
    return compile_plan(model, outputs, kernels=[*exact, *(saturating_kernels() if pair_saturation else ())])


# --- one layer --------------------------------------------------------------------------------------------------------


def _given(name: str) -> str:
    """Name of the input that stands for the runtime's integers."""
    return f"{name}/given"


def _layers_alone(model: ir.Model, tensors: Sequence[str]) -> tuple[ir.Model, list[_Layer]]:
    """Edit the model: every reader of these tensors reads a new input instead, so that each layer stands alone."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for name in tensors:
        value = values[name]
        given = ir.Value(name=_given(name), type=value.type, shape=value.shape)
        value.replace_all_uses_with(given, replace_graph_outputs=True)
        model.graph.inputs.append(given)
    model.graph.outputs.clear()
    layers = [_Layer(values[name]) for name in tensors]
    return model, [layer for layer in layers if layer.value.dtype != ir.DataType.FLOAT]


@attrs.define(eq=False)
class _Layer:
    """Counts the differences of one integer tensor."""

    value: ir.Value
    elements: int = 0
    differing: int = 0
    steps: int = 0
    from_tie: float = 0.0
    apart: float = 0.0

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def node(self) -> ir.Node:
        node = self.value.producer()
        assert node is not None
        return node

    @property
    def source(self) -> str | None:
        """The computed real tensor that is rounded to this one; None if it comes from integer arithmetic or a feed."""
        quantizes = self.node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"} and self.value.index() == 0
        source = self.node.inputs[0] if quantizes else None
        return None if source is None or source.producer() is None else str(source.name)

    def compare(self, ours: Feeds, theirs: Feeds) -> bool:
        """Whether the integers differ."""
        distance = self._distance(ours, theirs)
        self.elements += distance.size
        self.differing += int(np.count_nonzero(distance))
        self.steps = max(self.steps, int(distance.max(initial=0)))
        return bool(distance.any())

    def look_closer(self, ours: Feeds, theirs: Feeds, real: Feeds) -> None:
        """At the real numbers that were rounded differently; `real` are the runtime's."""
        assert self.source is not None
        differing = self._distance(ours, theirs) > 0
        mine, its = (self._in_steps(found[self.source], theirs)[differing].astype(np.float64) for found in (ours, real))
        self.from_tie = max(self.from_tie, float(np.abs(mine - np.floor(mine) - 0.5).max()))
        self.apart = max(self.apart, float(np.abs(mine - its).max()))

    def _distance(self, ours: Feeds, theirs: Feeds) -> NDArray[np.int64]:
        return np.abs(ours[self.name].astype(np.int64) - theirs[self.name].astype(np.int64))

    def _in_steps(self, real: NDArray[Any], theirs: Feeds) -> NDArray[Any]:
        """Real numbers divided by their scale."""
        if self.node.op_type == "DynamicQuantizeLinear":
            return np.asarray(real / theirs[str(self.node.outputs[1].name)])
        scale = constant(self.node.inputs[1])
        assert scale is not None
        axis, block = attribute(self.node, "axis", 1), attribute(self.node, "block_size", 0)
        return np.asarray(real / aligned_to(scale, real.shape, axis, block))

    def difference(self) -> LayerDifference:
        return LayerDifference(
            tensor=self.name,
            node=str(self.node.name),
            op=self.node.op_type,
            elements=self.elements,
            steps=self.steps,
            share=self.differing / max(1, self.elements),
            float_ops=tuple(sorted(_rounding_ops(self.node))),
            from_tie=self.from_tie,
            apart=self.apart,
        )


EXACT = frozenset("Cast Clip Concat Constant DequantizeLinear Max Min Neg Pad Relu Shape".split())
"""Operators that round nothing, or whose one rounding every runtime does alike."""


def _rounding_ops(node: ir.Node) -> Iterator[str]:
    """Types of the operators that round real numbers on the way to a node, from where the model was cut; each once."""
    seen, pending, found = {node}, [node], set[str]()
    while pending:
        for before in pending.pop().predecessors():
            if before in seen:
                continue
            seen.add(before)
            pending.append(before)
            real = before.outputs[0].dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
            if real and before.op_type not in MOVES | EXACT | found:
                found.add(before.op_type)
                yield before.op_type


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the integers of a quantized model with a runtime's. Exit code 1: a difference that is not explained."""
    from pumice.errors import PumiceError
    from pumice.measure.runtimes import pick_runtime

    parser = argparse.ArgumentParser(prog="python -m pumice.quantize.simulation", description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="samples: a path that an installed reader recognises")
    parser.add_argument("--limit", type=int, default=8, help="batches to run")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runtime", help="runtime to compare with; the best installed by default")
    given = parser.parse_args(arguments)
    try:
        model = load(given.model)
        differences = compare_integers(model, _feeds(model, given), pick_runtime(given.runtime))
    except PumiceError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(table(differences))
    return 0 if all(difference.explained for difference in differences) else 1


def _feeds(model: ir.Model, given: argparse.Namespace) -> Iterator[Feeds]:
    from pumice.data import open_dataset

    for batch in open_dataset(given.data, model).batches(given.batch_size, limit=given.limit):
        yield batch.feeds


def table(differences: Sequence[LayerDifference]) -> str:
    """One line about all the tensors and one for each that differs, the worst first."""
    worst = max((found.steps for found in differences), default=0)
    exact = sum(found.steps == 0 for found in differences)
    lines = [f"{len(differences)} integer tensors, {exact} equal bit for bit; largest difference: {worst} steps"]
    for found in sorted(differences, key=lambda d: (-d.steps, -d.share)):
        if found.steps:
            why = (
                f"{found.from_tie:.6f} steps from a tie and {found.apart:.6f} apart after {', '.join(found.float_ops)}"
            )
            reason = why if found.float_ops else "by integer arithmetic alone"
            lines.append(f"  {found.steps} steps in {found.share:.4%} of '{found.tensor}' ({found.op}), {reason}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
