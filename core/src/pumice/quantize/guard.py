"""The accuracy guard: a model that lost more than its budget gets its worst layers back in floating point.

What counts as lost, on the calibration data: the labelled metrics, if there are labels; an error that has no upper end
(`mse`) counts relative to what it was. If there are none, the outputs are compared with the original's: the budget is
broken if their noise-to-signal ratio exceeds NOISE times `max_drop` and, where the model seems to make decisions, more
than FIDELITY times `max_drop` of them changed. (Either alone says little: decisions between near-equals change under
the least noise, and noise that changes no decision is harmless.) A loss must also be larger than chance would make it
on that many samples (one-sided 95%).

If the budget is broken, every layer is quantized alone, the outputs are compared, and the layers that disturb them most
are returned to floating point: one, two, four, ... until the budget holds, and then as many fewer as it still holds
with. Each is named in the ledger with its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import PumiceError
from pumice.ledger import Ledger
from pumice.model import clone
from pumice.quantize.context import Drift, QuantizeContext
from pumice.strategy import Metric

FIDELITY = 5.0
NOISE = 10.0
CONFIDENCE = 1.645
"""Standard errors that a loss must exceed."""
JUDGED = 256
"""Samples used to judge a model."""
RANKED = 8
"""Samples used to rank layers."""

Keep = Callable[[ir.Node], str | None]
Build = Callable[[Keep, QuantizeContext], ir.Model]


@attrs.frozen(kw_only=True)
class Verdict:
    """What a quantized model lost, and whether that is too much."""

    measure: str
    loss: float
    budget: float
    error: float
    """Standard error of the loss."""

    @property
    def exceeded(self) -> bool:
        """NaN is too much."""
        return not (self.loss <= self.budget or self.loss <= CONFIDENCE * self.error)

    def __str__(self) -> str:
        return f"{self.measure} lost {self.loss:.4f} on the calibration data, the budget is {self.budget:.4f}"


def judge(original: ir.Model, changed: ir.Model, context: QuantizeContext) -> Verdict:
    """Compare the two models on the calibration data."""
    before, after = context.runtime.open(clone(original)), context.runtime.open(clone(changed))
    labelled = [metric for metric in context.metrics if not metric.fidelity]
    scores: list[list[tuple[float, float]]] = [[] for _ in labelled]
    changes: list[float] = []
    agreement = next((metric for metric in context.metrics if metric.name == "agreement"), None)
    drift = Drift()
    for feeds, labels in context.samples_with_labels(JUDGED):
        exact, found = before.run(feeds), after.run(feeds)
        drift.update(exact, found)
        if agreement is not None:
            changes += (1.0 - agreement.score(found, labels, exact)).tolist()
        if labels is not None:
            for metric, pairs in zip(labelled, scores, strict=True):
                pair = metric.score(exact, labels, exact), metric.score(found, labels, exact)
                pairs += zip(*(one.tolist() for one in pair), strict=True)
    lost = [_lost(metric, pairs, context.max_drop) for metric, pairs in zip(labelled, scores, strict=True) if pairs]
    if lost:
        return max(lost, key=lambda verdict: np.nan_to_num(verdict.loss, nan=np.inf))
    if changes:
        decided = _verdict("agreement with the original", np.array(changes), FIDELITY * context.max_drop)
        if not decided.exceeded:
            return decided
    measure = "output fidelity (noise to signal)"
    return Verdict(measure=measure, loss=drift.ratio, budget=NOISE * context.max_drop, error=0.0)


def _lost(metric: Metric, pairs: Sequence[tuple[float, float]], budget: float) -> Verdict:
    """What a labelled metric lost, sample by sample, from (before, after)."""
    before, after = np.array(pairs, np.float64).T
    if metric.higher_is_better:
        return _verdict(metric.name, before - after, budget)
    return _verdict(metric.name, (after - before) / (abs(float(before.mean())) or 1.0), budget)


def _verdict(measure: str, losses: NDArray[np.float64], budget: float) -> Verdict:
    error = float(np.std(losses) / np.sqrt(len(losses)))
    return Verdict(measure=measure, loss=float(np.mean(losses)), budget=budget, error=error)


def within_budget(model: ir.Model, build: Build, context: QuantizeContext, *, sketch: Build | None = None) -> ir.Model:
    """Build, judge, and give layers back until the budget holds.

    Args:
        model: the floating-point model.
        build: makes the quantized model; its argument tells which nodes to keep in floating point, and why.
        context: holds the budget and the ledger.
        sketch: a quicker `build`, good enough to compare layers.

    Raises:
        PumiceError: no layer can be quantized within the budget.
    """
    whole = _attempt(model, build, context, {})
    layers = [entry.node for entry in whole.ledger if entry.verdict == "applied" and "mode" in entry.details]
    accepted = whole
    if layers and whole.verdict(model, context).exceeded:
        ranking = _rank(model, layers, sketch or build, context)
        accepted = _search(model, build, context, whole.verdict(model, context), ranking)
    context.ledger.extend(accepted.ledger)
    return accepted.model


@attrs.define(eq=False)
class _Attempt:
    """A quantized model, its account, and the verdict on it once it was asked for."""

    model: ir.Model
    ledger: Ledger
    judged: Verdict | None = None

    def verdict(self, original: ir.Model, context: QuantizeContext) -> Verdict:
        if self.judged is None:
            self.judged = judge(original, self.model, context)
        return self.judged


def _attempt(model: ir.Model, build: Build, context: QuantizeContext, kept: Mapping[str, str]) -> _Attempt:
    """`kept`: why layers stay in floating point, by name."""
    around = attrs.evolve(context, ledger=Ledger())
    return _Attempt(build(lambda node: kept.get(node.name or ""), around), around.ledger)


def _search(
    model: ir.Model, build: Build, context: QuantizeContext, verdict: Verdict, ranking: Sequence[tuple[str, float]]
) -> _Attempt:
    """The model with the fewest of the worst layers in floating point that keeps the budget."""

    def without(count: int) -> _Attempt:
        said = f"returned to floating point: {verdict}, and this layer alone adds"
        return _attempt(model, build, context, {name: f"{said} {noise:.3g} noise" for name, noise in ranking[:count]})

    failed, enough = 0, 0
    found: _Attempt | None = None
    while found is None or enough - failed > 1:
        count = (failed + enough) // 2 if found is not None else min(max(2 * failed, 1), len(ranking) - 1)
        if count == failed:
            raise PumiceError(
                f"quantization was rolled back: {verdict}, and too much however few layers are quantized; "
                "raise max_drop, or give calibration data that looks like the real input"
            )
        attempt = without(count)
        if attempt.verdict(model, context).exceeded:
            failed = count
        else:
            found, enough = attempt, count
    return found


def _rank(model: ir.Model, layers: Sequence[str], build: Build, context: QuantizeContext) -> list[tuple[str, float]]:
    """(layer, noise-to-signal ratio at the outputs when it alone is quantized), worst first."""
    original = context.runtime.open(clone(model))
    samples = [(feeds, original.run(feeds)) for feeds in context.feeds(RANKED)]
    found = []
    with context.progress.task("rank layers", len(layers)) as advance:
        for name in layers:
            alone = build(lambda node, name=name: None if node.name == name else "not this one", context.aside())  # type: ignore[misc]
            session, drift = context.runtime.open(clone(alone)), Drift()
            for feeds, exact in samples:
                drift.update(exact, session.run(feeds))
            found.append((name, drift.ratio))
            advance()
    return sorted(found, key=lambda item: (-np.nan_to_num(item[1], nan=np.inf), item[0]))
