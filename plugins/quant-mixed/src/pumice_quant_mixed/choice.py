"""The choice of formats: an integer programme, solved exactly, and the smallest solution that keeps its budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import onnx_ir as ir

from pumice.diagnose.analysis import analyse
from pumice.errors import UnsupportedOp
from pumice.ledger import Ledger
from pumice.model import clone
from pumice.progress import unshown
from pumice.quantize.context import QuantizeContext
from pumice.quantize.placement import STEP
from pumice.quantize.weight_matrices import WeightMatrix, weight_matrices
from pumice_quant_mixed.formats import BLOCKWISE, Choice, apply_formats, bytes_of, given_to
from pumice_quant_mixed.sensitivity import Cost, Noise, by_gradient, by_measurement, by_stopwatch, by_weights, stopwatch
from pumice_quant_mixed.verification import Parts, Verdict, verified

if TYPE_CHECKING:
    from pumice_quant_mixed import Mixed

STEPS = 24
"""Points of the Pareto curve."""
WEIGHTS_ALONE = (*BLOCKWISE, "float16", "bfloat16")
INTEGER_WORK, WIDENING_WORK = 0.5, 1.5
"""Times that a multiplication takes as in float32: of integers, and in matrix products whose weights are widened with
every inference; weights of others are widened once."""


@attrs.frozen
class Point:
    """One solution."""

    formats: Choice
    cost: float
    """Bytes of weights, predicted milliseconds, or shares of bytes and of work."""
    noise: float
    """Predicted."""


class _Known(dict[str, list[Point]]):
    """The curve, found once for all attempts of the guard."""


def chosen_formats(model: ir.Model, knobs: Mixed, context: QuantizeContext, parts: Parts | None) -> Choice:
    """Format by node, within an accuracy budget on the part of the data that `context` does not calibrate with."""
    lifted = clone(model)
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    layers = _layers(lifted, knobs.smallest)
    usable = {name: matrices for name, matrices in layers.items() if not _excluded(lifted, name, context)}
    if context.draft:
        return _given(dict.fromkeys(usable, knobs.formats[0]), layers)
    known = context.recall(_Known)
    if "curve" not in known:
        cost = _cost(model, layers, knobs, context)
        noise = _noise(lifted, layers, knobs, context) if layers else {}
        known["curve"] = pareto(layers, knobs.formats, noise, cost) if layers else []
    curve = known["curve"]
    if not curve:
        return {}
    if knobs.budget == "size":
        most = knobs.size * sum(bytes_of("float32", m) for matrices in layers.values() for m in matrices)
        point = min((p for p in curve if p.cost <= most), key=lambda p: p.noise, default=curve[0])
    elif knobs.budget == "latency":
        point = _most_exact_in_time(model, layers, curve, knobs, context)
    else:
        point = _cheapest_within_budget(model, layers, curve, knobs, context, parts)
    context.notes.append(_told(point, curve, knobs))
    return _given({name: chosen for name, chosen in point.formats.items() if name in usable}, layers)


def _told(point: Point, curve: Sequence[Point], knobs: Mixed) -> str:
    if knobs.counts_milliseconds:
        shown = "; ".join(f"{p.cost:.3g} ms {p.noise:.2g}" for p in curve)
        return f"mixed precision: {point.cost:.3g} ms predicted; milliseconds and noise to choose from: {shown}"
    if knobs.counts_both:
        shown = "; ".join(f"{p.cost / 2:.2f} {p.noise:.2g}" for p in curve)
        return f"mixed precision: {point.cost / 2:.2f} of the bytes and the work of int8; shares and noise: {shown}"
    shown = "; ".join(f"{p.cost / 1e3:.0f} kB {p.noise:.2g}" for p in curve)
    return f"mixed precision: weights in {point.cost / 1e3:.0f} kB; bytes and noise to choose from: {shown}"


def _given(formats: Choice, layers: Mapping[str, Sequence[WeightMatrix]]) -> Choice:
    """Of every node, where layers share weights."""
    return {node: f for name, chosen in formats.items() for node, f in given_to(chosen, layers[name]).items()}


def _layers(model: ir.Model, smallest: int) -> dict[str, list[WeightMatrix]]:
    """Matrices by the node that reads them first."""
    found: dict[str, list[WeightMatrix]] = {}
    for matrix in weight_matrices(iter(model.graph)):
        if int(np.prod(matrix.shape)) >= smallest:
            found.setdefault(str(matrix.readers[0][0].name), []).append(matrix)
    return found


def _excluded(model: ir.Model, name: str, context: QuantizeContext) -> bool:
    return context.excluded(model.graph.node(name)) is not None


def _noise(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], knobs: Mixed, context: QuantizeContext
) -> Noise:
    """Of every layer in every format."""
    narrow = [name for name in knobs.formats if name != "float32"]
    found: Noise = {(name, "float32"): 0.0 for name in layers}
    if not any(value.dtype == ir.DataType.FLOAT for value in model.graph.outputs):
        context.notes.append("layers were compared by their weights, because the model answers with whole numbers")
        return found | by_weights(layers, narrow)
    if knobs.sensitivity == "gradient":
        alone = [name for name in narrow if name in WEIGHTS_ALONE]
        try:
            found |= by_gradient(model, layers, alone, context) if alone else {}
            narrow = [name for name in narrow if name not in alone]
        except UnsupportedOp as error:
            context.notes.append(f"sensitivities were measured layer by layer, because {error}")
    return found | (by_measurement(model, layers, narrow, context, knobs.smallest) if narrow else {})


def _cost(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], knobs: Mixed, context: QuantizeContext
) -> Cost | None:
    """What is to be least, if that is not bytes."""
    if knobs.counts_milliseconds:
        return _milliseconds(model, layers, knobs, context)
    return _shares(model, layers, knobs, context) if knobs.counts_both else None


def _shares(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], knobs: Mixed, context: QuantizeContext
) -> Cost:
    """Bytes and work of a layer in a format, each as a share of what all layers have as int8.

    The sum of the two is, to first order, the logarithm of bytes times time.
    """
    counted = {cost.node: cost.macs for cost in analyse(model, next(iter(context.feeds(1)))).costs}
    work = {
        n: sum(counted.get(str(r.name), 0) for m in matrices for r, _ in m.readers) for n, matrices in layers.items()
    }
    stored = {(n, f): sum(bytes_of(f, m) for m in layers[n]) for n in layers for f in (*knobs.formats, "int8")}
    most_bytes = sum(stored[name, "int8"] for name in layers)
    most_work = max(INTEGER_WORK * sum(work.values()), 1.0)
    return {
        (name, chosen): stored[name, chosen] / most_bytes + _pace(chosen, layers[name]) * work[name] / most_work
        for name in layers
        for chosen in knobs.formats
    }


def _pace(chosen: str, matrices: Sequence[WeightMatrix]) -> float:
    """Times that the work of a layer takes as in float32."""
    if chosen == "int8":
        return INTEGER_WORK
    widened = chosen in BLOCKWISE and all(matrix.op in ("MatMul", "Gemm") for matrix in matrices)
    return WIDENING_WORK if widened else 1.0


def _milliseconds(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], knobs: Mixed, context: QuantizeContext
) -> Cost:
    """Of a layer in a format: its share of the original's time, and what integers change of it."""
    changes, whole = by_stopwatch(model, layers, [f for f in knobs.formats if f == "int8"], context, knobs.smallest)
    share = whole / max(len(layers), 1)
    return {(n, f): max(share + changes.get((n, f), 0.0), 0.0) for n in layers for f in knobs.formats}


# --- the programme ----------------------------------------------------------------------------------------------------


def pareto(
    layers: Mapping[str, Sequence[WeightMatrix]], formats: Sequence[str], noise: Noise, cost: Cost | None = None
) -> list[Point]:
    """Solutions from the cheapest to the most exact, each the best for its noise; bytes are the usual cost."""
    if cost is None:
        cost = {(n, f): sum(bytes_of(f, m) for m in matrices) for n, matrices in layers.items() for f in formats}
    usable = {key: value for key, value in noise.items() if key in cost and np.isfinite(value)}
    smallest = _solved(list(layers), usable, cost, np.inf)
    exact = {
        name: min((usable[name, f], cost[name, f], f) for f in formats if (name, f) in usable)[2] for name in layers
    }
    least, most = sum(usable[item] for item in exact.items()), smallest.noise
    if most <= least:
        return [smallest]
    budgets = np.geomspace(most, max(least, most * 1e-5), STEPS)[1:]
    points = [smallest, *(_solved(list(layers), usable, cost, float(budget)) for budget in budgets)]
    points.append(Point(exact, sum(cost[item] for item in exact.items()), least))
    kept: list[Point] = []
    for point in points:
        if not kept or point.noise < kept[-1].noise:
            kept.append(point)
    return kept


def _solved(layers: Sequence[str], noise: Noise, cost: Mapping[tuple[str, str], float], budget: float) -> Point:
    """The cheapest formats whose noise is within the budget (HiGHS, by branch and bound)."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    keys = list(noise)
    rows = {name: number for number, name in enumerate(layers)}
    one_each = csr_array((np.ones(len(keys)), ([rows[name] for name, _ in keys], range(len(keys)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    if np.isfinite(budget):
        shares = np.array([noise[key] for key in keys]) / budget
        constraints.append(LinearConstraint(np.minimum(shares, 2.0)[None], -np.inf, 1.0))
    price = np.array([cost[key] for key in keys])
    tie = 1e-9 * np.array([noise[key] for key in keys]) / max(*noise.values(), 1e-30)  # the less noisy of equals
    whole = np.ones(len(keys), np.int64)
    answer = milp(
        price / max(price.max(), 1e-30) + tie, integrality=whole, bounds=Bounds(0, 1), constraints=constraints
    )
    assert answer.x is not None  # the exact formats are within every budget that is asked for
    chosen = [key for key, taken in zip(keys, answer.x, strict=True) if taken > 0.5]
    return Point(dict(chosen), sum(cost[key] for key in chosen), sum(noise[key] for key in chosen))


def _cheapest_within_budget(
    model: ir.Model,
    layers: Mapping[str, Sequence[WeightMatrix]],
    curve: Sequence[Point],
    knobs: Mixed,
    context: QuantizeContext,
    parts: Parts | None,
) -> Point:
    """By measurement, which the account is told: bisection on the curve, along which noise falls."""
    assert parts is not None  # without data, there is no noise to choose by
    verdicts: dict[int, Verdict] = {}

    def fits(number: int) -> bool:
        changed = _tried(model, layers, curve[number], knobs, context)
        verdicts[number] = verified(model, changed, parts, context)
        return verdicts[number].kept

    chosen = bisect_left(range(len(curve) - 1), True, key=fits)
    last = verdicts[chosen if chosen in verdicts else chosen - 1] if verdicts else None
    kept = "is within the budget" if chosen in verdicts else "that anything narrower has is beyond the budget"
    said = f"mixed precision: {last} {kept}" if last else "mixed precision: there is one choice of formats"
    context.notes.append(said)
    context.ledger.note(STEP, said)
    return curve[chosen]


def _most_exact_in_time(
    model: ir.Model,
    layers: Mapping[str, Sequence[WeightMatrix]],
    curve: Sequence[Point],
    knobs: Mixed,
    context: QuantizeContext,
) -> Point:
    """By measurement: bisection on the curve, along which time grows; the first point if none is quick enough."""

    def too_slow(point: Point) -> bool:
        ours, original = stopwatch(model, _tried(model, layers, point, knobs, context), context)
        return ours > knobs.latency * original

    return curve[bisect_left(curve[1:], True, key=too_slow)]


def _tried(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], point: Point, knobs: Mixed, context: QuantizeContext
) -> ir.Model:
    """The model in the formats of a point of the curve, with nothing of it in the account."""
    around = attrs.evolve(context, ledger=Ledger(), progress=unshown(context.progress), notes=[])
    return apply_formats(model, _given(point.formats, layers), around, smallest=knobs.smallest)
