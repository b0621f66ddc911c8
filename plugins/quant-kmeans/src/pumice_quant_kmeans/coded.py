"""8-bit integers of which a layer uses sixteen: computed with as 8-bit integers are, stored as 4-bit codes.

    q = t[c],  t = 16 of the integers -127 .. 127,  c in 4 bits         w' = q s, a scale an output

A runtime looks the codes up once, when it loads the model, so that they cost no time; the file is half. Integers are
those of `pumice.quantize.engine`, with the table of each layer in place of all 255: k-means of its weights in units of
their scales, where an input counts as errors of its weights do in the end, and scales that are fitted to it in turn.
Codes keep the layer's output as integers do (GPTQ), and the bias takes up the mean.

Not every layer bears it. If all do not keep the loss within its budget, each is tried alone: the layers are sorted by
the noise they add a byte saved, and by bisection as many of the first as the budget bears are stored as codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.ledger import Ledger
from pumice.measure.budget import JUDGED, NOISE, Drift
from pumice.model import add_initializer, clone, constant, fresh_name, weight_of
from pumice.progress import unshown
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.quantize.error_feedback import unexplained_moments
from pumice.quantize.grids import CodebookGrid
from pumice.quantize.placement import STEP
from pumice.strategy import Need
from pumice_quant_kmeans.clustering import clustered

if TYPE_CHECKING:
    from pumice.quantize.context import QuantizeContext
    from pumice_quant_kmeans import Coded

Array = NDArray[Any]
ENTRIES = 16
RANKED = 8
"""Samples that rank layers."""
FEWEST = 256
"""Weights of a layer for which table and operators are worth it."""
FITS, BOUNDS = 2, (0.5, 2.0)
"""Times that tables and scales are fitted to each other, and what a scale may change by."""
KINDS = frozenset({"Conv", "Gemm", "Gather", "MatMul"})


class _Chosen(list[frozenset[str]]):
    """The layers that are stored as codes, found once for all attempts of the guard."""


def coded(model: ir.Model, knobs: Coded, context: QuantizeContext) -> ir.Model:
    """A copy of the model in 8-bit integers, the weights of as many layers as the budget bears in 4-bit codes."""
    layers = _layers(model, knobs.smallest)
    known = context.recall(_Chosen)
    if context.draft:
        return _quantized(model, known[0] if known else layers, knobs, context)
    if not known:
        known.append(_chosen(model, layers, knobs, context))
    changed = _quantized(model, known[0], knobs, context)
    stored = pack(changed)
    said = f"{len(known[0])} of {len(layers)} layers use {ENTRIES} integers each; {stored} tables are stored as codes"
    context.notes.append(said)
    context.ledger.note(STEP, said)
    return changed


def _layers(model: ir.Model, smallest: int) -> frozenset[str]:
    """The layers, by name, whose weights are large enough."""
    found = {n.name or "": weight_of(n) for n in model.graph if n.op_type in KINDS}
    least = max(FEWEST, smallest)
    return frozenset(name for name, value in found.items() if value is not None and _fits(value, least))


def _fits(weights: ir.Value, least: int) -> bool:
    """Weights of products with a matrix for every batch share a scale: they are left alone."""
    held = constant(weights)
    return held is not None and held.size >= least


def _quantized(
    model: ir.Model, names: frozenset[str], knobs: Coded, context: QuantizeContext, *, finish: bool = True
) -> ir.Model:
    """With these layers of few integers; what was rounded before is recalled, and `finish` then takes most time."""
    levels = functools.partial(_levels, seed=context.seed)
    scheme = Scheme(
        recurrent="kernel", smallest=knobs.smallest, levels=dict.fromkeys(names, levels), correct_bias=finish
    )
    return quantize_layers(model, scheme, context)


def _levels(weights: Array, second: Array | None, *, seed: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """The integers that weights of a layer may be, and the factors of their scales; each is fitted to the other.

    Scales of what is looked up stay: what errors do there is not known, and few of the rows are read at all.
    """
    factors = np.ones(weights.shape[:2])
    if second is None:
        return _table(weights, None, seed), factors
    loud = unexplained_moments(second)[:, None]
    heavy = np.broadcast_to(loud, weights.shape)
    for _ in range(FITS):
        table = _table(weights / factors[..., None], heavy, seed)
        grid = CodebookGrid(table=table[None, None, None].astype(np.float64), scale=factors[..., None], block=1)
        nearest = table[grid.codes(weights)].astype(np.float64)
        power, product = (np.sum(loud * nearest * other, axis=2) for other in (nearest, weights))
        factors = np.clip(np.where(power > 0, product / np.where(power > 0, power, 1.0), 1.0), *BOUNDS)
    return table, factors


def _table(weights: Array, heavy: Array | None, seed: int) -> NDArray[np.int8]:
    points, loud = weights.reshape(1, -1).astype(np.float32), None if heavy is None else heavy.reshape(1, -1)
    return np.unique(np.clip(np.rint(clustered(points, loud, ENTRIES, seed)), -127, 127)).astype(np.int8)


# --- which layers -----------------------------------------------------------------------------------------------------


def _chosen(model: ir.Model, layers: frozenset[str], knobs: Coded, context: QuantizeContext) -> frozenset[str]:
    """As many layers as the budget bears, those first that save most for the noise that they add."""
    samples = _Samples.of(model, context)
    silent = attrs.evolve(context, progress=unshown(context.progress), notes=[])

    def made(names: frozenset[str], *, finish: bool = False) -> ir.Model:
        return _quantized(model, names, knobs, attrs.evolve(silent, ledger=Ledger()), finish=finish)

    if samples.keep(made(layers, finish=True), knobs.share):
        return layers
    made(frozenset(), finish=True)  # rounds what the others recall
    sizes = {n.name or "": constant(weight_of(n)).size for n in model.graph if n.name in layers}  # type: ignore[union-attr]
    ranking = _ranking(sizes, made, samples)
    fewest, most = 0, len(ranking)  # none is taken for kept: integers alone are for the guard to judge
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if samples.keep(made(frozenset(ranking[:middle])), knobs.share):
            fewest = middle
        else:
            most = middle
    return frozenset(ranking[:fewest])


def _ranking(sizes: Mapping[str, int], made: Callable[[frozenset[str]], ir.Model], samples: _Samples) -> list[str]:
    """Layers, of which the number of weights is given, from the one that adds least noise a byte saved."""
    usual, added = samples.noise(made(frozenset())), {}
    with samples.context.progress.task("rank layers", len(sizes)) as advance:
        for name in sorted(sizes):
            added[name] = max(samples.noise(made(frozenset([name]))) - usual, 0.0) / sizes[name]
            advance()
    return sorted(sizes, key=lambda name: (added[name], -sizes[name], name))


@attrs.frozen(eq=False)
class _Samples:
    """What models are compared on: feeds, labels, and what the original answers."""

    samples: Sequence[tuple[dict[str, Array], Any, Mapping[str, Array]]]
    context: QuantizeContext

    @classmethod
    def of(cls, model: ir.Model, context: QuantizeContext) -> _Samples:
        session = context.runtime.open(clone(model))
        return cls([(f, labels, session.run(f)) for f, labels in context.samples_with_labels(JUDGED)], context)

    def noise(self, changed: ir.Model) -> float:
        """At the outputs, on a few."""
        session, drift = self.context.runtime.open(changed), Drift()
        for feeds, _, exact in self.samples[:RANKED]:
            drift.update(exact, session.run(feeds))
        return drift.ratio

    def keep(self, changed: ir.Model, share: float) -> bool:
        """Whether the loss by the first metric, or the noise where there is none, is within a share of its budget."""
        session, drift, losses = self.context.runtime.open(changed), Drift(), []
        metric = next(iter(self.context.metrics), None)
        for feeds, labels, exact in self.samples:
            found = session.run(feeds)
            drift.update(exact, found)
            if metric is not None and (labels is not None or Need.LABELS not in metric.needs):
                before, after = (metric.score(answers, labels, exact) for answers in (exact, found))
                losses.append(float(np.mean(before - after if metric.higher_is_better else after - before)))
        most = share * self.context.max_drop
        if self.context.noise and drift.ratio > self.context.noise:
            return False
        return float(np.mean(losses)) <= most if losses else drift.ratio <= NOISE * most


# --- storage ----------------------------------------------------------------------------------------------------------


def pack(model: ir.Model) -> int:
    """Store integers of which there are but a few as codes and a table, in place; how many arrays that were."""
    found = 0
    for name, value in list(model.graph.initializers.items()):
        held = constant(value)
        if held is None or held.dtype != np.int8 or held.size < FEWEST or not value.uses():
            continue
        table, codes = np.unique(held, return_inverse=True)
        if len(table) <= ENTRIES:
            _look_up(model, value, table, codes.reshape(held.shape))
            del model.graph.initializers[name]
            found += 1
    model.graph.sort()
    return found


def _look_up(model: ir.Model, value: ir.Value, table: NDArray[np.int8], codes: Array) -> None:
    """Gather(table, Cast(codes)) in the place of an initializer."""
    stored = add_initializer(model, f"{value.name}/codes", codes.astype(np.uint8).astype(ml_dtypes.uint4))
    index = _node(model, "Cast", [stored], f"{value.name}/index", to=int(ir.DataType.INT32))
    few = add_initializer(model, f"{value.name}/table", table)
    looked_up = _node(model, "Gather", [few, index], f"{value.name}/looked_up")
    looked_up.shape, looked_up.type = value.shape, value.type
    value.replace_all_uses_with(looked_up)


def _node(model: ir.Model, op: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
    made = ir.node(op, inputs, attributes=attributes, name=fresh_name(model, name))
    made.outputs[0].name = fresh_name(model, name)
    model.graph.append(made)
    return made.outputs[0]
