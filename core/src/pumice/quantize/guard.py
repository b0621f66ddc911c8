"""The accuracy guard: a model that lost more than its budget gets its worst layers back in floating point.

What counts as lost, on the calibration data: the labelled metrics, if there are labels. If there are none, the outputs are
compared with the original's: the budget is broken if their noise-to-signal ratio exceeds NOISE times `max_drop` and, where
the model seems to make decisions, more than FIDELITY times `max_drop` of them changed. (Either alone says little: decisions
between near-equals change under the least noise, and noise that changes no decision is harmless.) A loss must also be larger
than chance would make it on that many samples (one-sided 95%).

If the budget is broken, every layer is quantized alone, the outputs are compared, and the layers that disturb them most
are returned to floating point: one, two, four, ... until the budget holds. Each is named in the ledger with its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
import onnx_ir as ir

from pumice.errors import PumiceError
from pumice.model import clone
from pumice.quantize.context import Drift, QuantizeContext

FIDELITY = 5.0
NOISE = 10.0
CONFIDENCE = 1.645
"""Standard errors that a loss must exceed."""
JUDGED = 256
"""Samples used to judge a model."""
RANKED = 8
"""Samples used to rank layers."""

Keep = Callable[[ir.Node], str | None]


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
        return self.loss > self.budget and self.loss > CONFIDENCE * self.error

    def __str__(self) -> str:
        return f"{self.measure} lost {self.loss:.4f} on the calibration data, the budget is {self.budget:.4f}"


def judge(original: ir.Model, changed: ir.Model, context: QuantizeContext) -> Verdict:
    """Compare the two models on the calibration data."""
    before, after = context.runtime.open(clone(original)), context.runtime.open(clone(changed))
    labelled = [metric for metric in context.metrics if not metric.fidelity]
    losses: dict[str, list[float]] = {metric.name: [] for metric in labelled}
    changes: list[float] = []
    agreement = next((metric for metric in context.metrics if metric.name == "agreement"), None)
    drift = Drift()
    for feeds, labels in context.samples_with_labels(JUDGED):
        exact, found = before.run(feeds), after.run(feeds)
        drift.update(exact, found)
        if agreement is not None:
            changes += (1.0 - agreement.score(found, labels, exact)).tolist()
        if labels is not None:
            for metric in labelled:
                sign = 1.0 if metric.higher_is_better else -1.0
                gained = metric.score(found, labels, exact) - metric.score(exact, labels, exact)
                losses[metric.name] += (-sign * gained).tolist()
    worst = max((_verdict(n, v, context.max_drop) for n, v in losses.items() if v), key=lambda v: v.loss, default=None)
    if worst is not None:
        return worst
    if changes:
        decided = _verdict("agreement with the original", changes, FIDELITY * context.max_drop)
        if not decided.exceeded:
            return decided
    return Verdict(
        measure="output fidelity (noise to signal)", loss=drift.ratio, budget=NOISE * context.max_drop, error=0
    )


def _verdict(measure: str, losses: Sequence[float], budget: float) -> Verdict:
    error = float(np.std(losses) / np.sqrt(len(losses)))
    return Verdict(measure=measure, loss=float(np.mean(losses)), budget=budget, error=error)


def within_budget(
    model: ir.Model, build: Callable[[Keep, QuantizeContext], ir.Model], context: QuantizeContext
) -> ir.Model:
    """Build, judge, and give layers back until the budget holds.

    Args:
        model: the floating-point model.
        build: makes the quantized model; its argument tells which nodes to keep in floating point, and why.
        context: holds the budget and the ledger.

    Raises:
        PumiceError: no layer can be quantized within the budget.
    """
    mark = len(context.ledger)
    changed = build(_nothing, context)
    applied = [
        entry.node for entry in context.ledger.entries[mark:] if entry.verdict == "applied" and "mode" in entry.details
    ]
    if not applied:
        return changed
    verdict = judge(model, changed, context)
    if not verdict.exceeded:
        return changed
    ranking = _rank(model, applied, build, context)
    count = 1
    while verdict.exceeded:
        if count >= len(ranking):
            raise PumiceError(
                f"quantization was rolled back: {verdict}, with any layer quantized; "
                "raise max_drop, or give calibration data that looks like the real input"
            )
        worst = dict(ranking[:count])
        del context.ledger.entries[mark:]
        changed = build(lambda node, worst=worst, said=verdict: _reason(node, worst, said), context)  # type: ignore[misc]
        verdict = judge(model, changed, context)
        count *= 2
    return changed


def _nothing(_: ir.Node) -> str | None:
    return None


def _reason(node: ir.Node, worst: dict[str, float], verdict: Verdict) -> str | None:
    if node.name not in worst:
        return None
    return (
        f"returned to floating point: {verdict.measure} lost too much, and alone it adds {worst[node.name]:.3g} noise"
    )


def _rank(
    model: ir.Model, layers: Sequence[str], build: Callable[[Keep, QuantizeContext], ir.Model], context: QuantizeContext
) -> list[tuple[str, float]]:
    """(layer, noise-to-signal ratio at the outputs when it alone is quantized), worst first."""
    found = []
    with context.progress.task("rank layers", len(layers)) as advance:
        for name in layers:
            quiet = context.aside()
            alone = build(lambda node, name=name: None if node.name == name else "not this one", quiet)  # type: ignore[misc]
            found.append((name, context.drift(model, alone, RANKED).ratio))
            advance()
    return sorted(found, key=lambda item: (-item[1], item[0]))
