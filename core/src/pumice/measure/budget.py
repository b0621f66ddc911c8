"""What a step cost the model, and whether that is more than the step may lose.

Two models are compared on data, sample by sample. With labels, the metrics count; an error that has no upper end
(`mse`) counts relative to what it was. Without any, the outputs are compared with the original's: the budget is
broken if their noise-to-signal ratio exceeds NOISE times `max_drop` and, where the model seems to make decisions, more
than FIDELITY times `max_drop` of them changed. (Either alone says little: decisions between near-equals change under
the least noise, and noise that changes no decision is harmless.) A loss must also be larger than chance would make it
on that many samples (one-sided 95%).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.model import clone

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Batch, Dataset
    from pumice.strategy import Metric, Runtime

Feeds = dict[str, NDArray[Any]]

FIDELITY = 5.0
NOISE = 10.0
CONFIDENCE = 1.645
"""Standard errors that a loss must exceed."""
JUDGED = 256
"""Samples used to judge a model."""
NOISE_TO_SIGNAL = "output fidelity (noise to signal)"
"""What is judged where no answers are."""


@attrs.frozen(kw_only=True)
class Verdict:
    """What a changed model lost, and whether that is too much."""

    measure: str
    loss: float
    budget: float
    error: float
    """Standard error of the loss."""
    noise: float = 0.0
    """Noise-to-signal ratio of the outputs."""

    @property
    def exceeded(self) -> bool:
        """NaN is too much."""
        return not (self.loss <= self.budget or self.loss <= CONFIDENCE * self.error)

    def __str__(self) -> str:
        return f"{self.measure} lost {self.loss:.4f} on the calibration data, the budget is {self.budget:.4f}"


def judge(
    original: ir.Model,
    changed: ir.Model,
    samples: Iterable[tuple[Feeds, Any]],
    metrics: Sequence[Metric],
    runtime: Runtime,
    max_drop: float,
) -> Verdict:
    """Compare two models on samples (feeds, labels); labels are None where there are none."""
    before, after = runtime.open(clone(original)), runtime.open(clone(changed))
    labelled = [metric for metric in metrics if not metric.fidelity]
    scores: list[list[tuple[float, float]]] = [[] for _ in labelled]
    changes: list[float] = []
    agreement = next((metric for metric in metrics if metric.name == "agreement"), None)
    drift = Drift()
    for feeds, labels in samples:
        exact, found = before.run(feeds), after.run(feeds)
        drift.update(exact, found)
        if agreement is not None:
            changes += (1.0 - agreement.score(found, labels, exact)).tolist()
        if labels is not None:
            for metric, pairs in zip(labelled, scores, strict=True):
                pair = metric.score(exact, labels, exact), metric.score(found, labels, exact)
                pairs += zip(*(one.tolist() for one in pair), strict=True)
    lost = [_lost(metric, pairs, max_drop) for metric, pairs in zip(labelled, scores, strict=True) if pairs]
    if lost:
        worst = max(lost, key=lambda verdict: np.nan_to_num(verdict.loss, nan=np.inf))
        return attrs.evolve(worst, noise=drift.ratio)
    if changes:
        decided = _verdict("agreement with the original", np.array(changes), FIDELITY * max_drop)
        if not decided.exceeded:
            return attrs.evolve(decided, noise=drift.ratio)
    return Verdict(measure=NOISE_TO_SIGNAL, loss=drift.ratio, budget=NOISE * max_drop, error=0.0, noise=drift.ratio)


def _lost(metric: Metric, pairs: Sequence[tuple[float, float]], budget: float) -> Verdict:
    """What a labelled metric lost, sample by sample, from (before, after)."""
    before, after = np.array(pairs, np.float64).T
    if metric.higher_is_better:
        return _verdict(metric.name, before - after, budget)
    return _verdict(metric.name, (after - before) / (abs(float(before.mean())) or 1.0), budget)


def _verdict(measure: str, losses: NDArray[np.float64], budget: float) -> Verdict:
    error = float(np.std(losses) / np.sqrt(len(losses)))
    return Verdict(measure=measure, loss=float(np.mean(losses)), budget=budget, error=error)


def rows(data: Dataset, limit: int) -> Iterator[tuple[Feeds, Any]]:
    """(feeds, labels) of the first samples, one at a time; labels are None where there are none.

    A feed of several rows of a batch axis is that many samples, so that nothing depends on how the data is batched.
    """
    batches = data.batches(batch_size=1, limit=limit)
    every = (row for batch in batches for row in _rows(batch, stacked=data.inputs.stacks))
    yield from itertools.islice(every, limit)


def _rows(batch: Batch, *, stacked: bool) -> Iterator[tuple[Feeds, Any]]:
    """The rows of a batch, if its first axis is one; else the batch as it is."""
    feeds, labels = dict(batch.feeds), batch.labels
    counts = {len(array) if array.ndim else 0 for array in feeds.values()}
    count = counts.pop() if stacked and len(counts) == 1 else 1
    if count < 2 or (labels is not None and len(labels) != count):
        yield feeds, labels
        return
    for row in range(count):
        part = slice(row, row + 1)
        yield {name: array[part] for name, array in feeds.items()}, None if labels is None else labels[part]


@attrs.define
class Drift:
    """Distance between the outputs of two models, streamed."""

    noise: dict[str, float] = attrs.field(factory=dict)
    signal: dict[str, float] = attrs.field(factory=dict)
    """Squared deviations from the mean of the sample."""
    single: dict[str, list[float]] = attrs.field(factory=dict)
    """Outputs that are one number a sample: these vary from sample to sample only."""
    agreeing: int = 0
    decisions: int = 0

    def update(self, before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> None:
        for name, exact in before.items():
            if exact.dtype.kind != "f" or not exact.size:
                continue
            known = np.isfinite(exact)  # a mask of minus infinities is no signal
            wide = np.where(known, exact, 0.0).astype(np.float64)
            self.noise[name] = self.noise.get(name, 0.0) + float(
                np.sum((np.where(known, after[name], 0.0) - wide) ** 2)
            )
            self.signal[name] = self.signal.get(name, 0.0) + float(np.sum((wide - wide.mean()) ** 2))
            if wide.size == 1:
                self.single.setdefault(name, []).append(wide.item())
            if exact.ndim > 1 and exact.shape[-1] > 1:
                same = exact.argmax(axis=-1) == after[name].argmax(axis=-1)
                self.agreeing += int(same.sum())
                self.decisions += same.size

    @property
    def ratio(self) -> float:
        """Worst noise-to-signal ratio of any output; infinite if one is NaN."""
        signal = {name: self.signal[name] + _spread(self.single.get(name, ())) for name in self.noise}
        ratios = [noise / max(signal[name], 1e-30) for name, noise in self.noise.items()]
        return max((np.inf if np.isnan(ratio) else ratio for ratio in ratios), default=0.0)

    @property
    def agreement(self) -> float:
        """Share of last-axis decisions that stayed the same; 1 if there are none."""
        return self.agreeing / self.decisions if self.decisions else 1.0


def _spread(numbers: Sequence[float]) -> float:
    """Squared deviations from the mean; from zero if there is only one number."""
    return float(np.sum((np.asarray(numbers) - (np.mean(numbers) if len(numbers) > 1 else 0.0)) ** 2))
