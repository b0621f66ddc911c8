"""Whether a choice of formats keeps the accuracy budget, seen on samples that nothing was fitted to as well.

A third of the calibration data is put aside: sensitivities and weights know the rest alone. On that third, and on all
of the data, for a third may be few, the loss must stay within the budget with CONFIDENCE standard errors to spare. With
labels, the loss is that of the metrics. Without any, it is what the network's own answers tell, with p what it makes of
its last axis:

    whole numbers       the share of rows that changed
    one decision        E (p1 - p2) Phi(-margin / sigma): how much less likely the answer is than the one that it would
                        give way to, times how likely it does, under noise of the size seen; margins are of log p
    many of a sample    E KL(p, p') / E H(p): what a sequence costs more in bits
    any other numbers   the ratio of noise to signal, as the accuracy guard counts it

The expectations are those of a network that is right as often as it says; numbers that are no decisions but lie on a
last axis are taken for such, and judged by their noise as well. Where that axis varies from sample to sample, there is
nothing to decide among, and noise alone judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.data import Dataset
from pumice.measure.budget import CONFIDENCE, JUDGED, NOISE, Drift, Feeds, judge, rows
from pumice.model import clone
from pumice.quantize.context import QuantizeContext

Array = NDArray[Any]
TINY = 1e-30
RATIO = "ratio of noise to signal"
PART = 3
"""One sample of so many is put aside."""


@attrs.frozen(eq=False)
class Parts:
    """The calibration data in two; of a single sample there is one part."""

    fitted: Dataset
    aside: Dataset | None

    @classmethod
    def of(cls, data: Dataset) -> Parts:
        count = data.count()
        if count < 2:
            return cls(data, None)
        aside, fitted = data.split(max(1, count // PART))
        return cls(fitted, aside)


@attrs.frozen(kw_only=True)
class Verdict:
    """What a changed model loses by one measure."""

    measure: str
    loss: float
    error: float
    """Its standard error over the answers."""
    budget: float
    samples: int
    where: str

    @property
    def share(self) -> float:
        """Of the budget that is used, with standard errors to spare."""
        return (self.loss + CONFIDENCE * self.error) / max(self.budget, TINY)

    @property
    def kept(self) -> bool:
        return self.share <= 1.0

    def __str__(self) -> str:
        count = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        return (
            f"the {self.measure} of {self.loss:.4f} (standard error {self.error:.4f}, allowed {self.budget:.4f}), "
            f"judged on {count} {self.where},"
        )


def verified(original: ir.Model, changed: ir.Model, parts: Parts, context: QuantizeContext) -> Verdict:
    """The verdict of the measure that comes nearest to its budget, or exceeds it most."""
    aside = list(rows(parts.aside, JUDGED)) if parts.aside is not None else []
    every = aside + list(rows(parts.fitted, JUDGED))
    verdicts = [
        Verdict(measure=measure, loss=loss, error=error, budget=budget, samples=len(samples), where=where)
        for samples, where in ((aside, "put aside for it"), (every, "in all"))
        if samples
        for measure, loss, error, budget in _losses(original, changed, samples, context)
    ]
    return max(verdicts, key=lambda verdict: np.nan_to_num(verdict.share, nan=np.inf))


def _losses(
    original: ir.Model, changed: ir.Model, samples: Sequence[tuple[Feeds, Any]], context: QuantizeContext
) -> list[tuple[str, float, float, float]]:
    """(measure, loss, standard error, budget): of the metrics, or of all outputs; of these where noise has a budget."""
    if any(labels is not None for _, labels in samples) and any(not metric.fidelity for metric in context.metrics):
        found = judge(original, changed, samples, context.metrics, context.runtime, context.max_drop)
        noise = [(RATIO, found.noise, 0.0, context.noise)] if context.noise else []
        return [(f"loss of {found.measure}", found.loss, found.error, found.budget), *noise]
    before, after = (context.runtime.open(clone(model)) for model in (original, changed))
    pairs, drift = [(before.run(feeds), after.run(feeds)) for feeds, _ in samples], Drift()
    for exact, narrow in pairs:
        drift.update(exact, narrow)
    losses = []
    for name in pairs[0][0]:
        told = _told([exact[name] for exact, _ in pairs], [narrow[name] for _, narrow in pairs])
        if told is not None:
            measure, each = told
            losses.append((measure, float(each.mean()), float(each.std() / np.sqrt(len(each))), context.max_drop))
    return [*losses, (RATIO, drift.ratio, 0.0, min(context.noise or np.inf, NOISE * context.max_drop))]


# --- answers ----------------------------------------------------------------------------------------------------------


def _told(before: Sequence[Array], after: Sequence[Array]) -> tuple[str, Array] | None:
    """What an output tells of the loss, and the loss of every answer; None if it makes no decisions."""
    exact, found = ([_answers(output) for output in outputs] for outputs in (before, after))
    kind, widths = exact[0].dtype.kind, {answers.shape[1] for answers in exact}
    if kind in "iub":
        return "share of other answers", np.concatenate([_changed(*pair) for pair in zip(exact, found, strict=True)])
    if kind != "f" or len(widths) > 1 or min(widths) < 2:
        return None
    log_p, log_q = (_log_probabilities(np.concatenate(answers)) for answers in (exact, found))
    if len(log_p) > len(before):
        return "loss in bits", _divergences(log_p, log_q)
    return "loss of accuracy", _expected_losses(log_p, log_q)


def _changed(before: Array, after: Array) -> Array:
    """1 for every row that changed, else 0; where there are others than before, all have."""
    changed = np.any(before != after, axis=1) if before.shape == after.shape else np.ones(len(before))
    return np.asarray(changed, np.float64)


def _answers(output: Array) -> Array:
    """Rows along the last axis; numbers in a row of their own where there is only one axis."""
    rows, width = (math.prod(output.shape[:-1]), output.shape[-1]) if output.ndim > 1 else (output.size, 1)
    return output.reshape(rows, width)


def _log_probabilities(numbers: Array) -> Array:
    """Of probabilities, if rows are such, else of logits."""
    wide = numbers.astype(np.float64)
    if wide.min(initial=0.0) >= 0.0 and np.allclose(wide.sum(axis=1), 1.0, atol=1e-3):
        wide = np.log(np.maximum(wide, TINY))
    wide = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def _divergences(before: Array, after: Array) -> Array:
    """KL(p, p') of every row, in units of the mean entropy."""
    p = np.exp(before)
    entropy = -float(np.mean(np.sum(p * before, axis=1)))
    return np.asarray(np.sum(p * (before - after), axis=1) / max(entropy, TINY))


def _expected_losses(before: Array, after: Array) -> Array:
    """(p1 - p2) Phi(-margin / sigma) of every row."""
    best = np.argsort(before, axis=1)[:, -2:]  # the second, the first
    log_p, found = (np.take_along_axis(log, best, axis=1) for log in (before, after))
    margin = log_p[:, 1] - log_p[:, 0]
    sigma = float(np.sqrt(np.mean((found[:, 1] - found[:, 0] - margin) ** 2)))
    odds = [0.5 * math.erfc(one / max(sigma, TINY) / math.sqrt(2.0)) for one in margin]
    return np.asarray((np.exp(log_p[:, 1]) - np.exp(log_p[:, 0])) * odds)
