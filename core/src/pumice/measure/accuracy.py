"""Accuracy, streamed, with intervals and tests.

A score of 0/1 samples gets Wilson's interval (1927), any other the t interval of its mean; both at 95%. Two models
measured on the same samples are compared pair by pair: McNemar's exact test (1947) for 0/1 scores, the paired t test
otherwise. Nothing is random.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError, ModelError
from pumice.measure.choosing import choose_metrics
from pumice.measure.runtimes import as_session
from pumice.progress import Progress, Silent
from pumice.strategy import Metric, Need, Runtime, Session

if TYPE_CHECKING:
    from pumice.data import Batch, Dataset

Array = NDArray[Any]
CONFIDENCE = 0.95


@attrs.frozen(kw_only=True, eq=False)
class Score:
    """One metric of one model on one dataset."""

    metric: Metric
    mean: float
    low: float
    """Lower end of the 95% interval; NaN with a single sample that is not 0/1."""
    high: float
    samples: int
    scores: Array = attrs.field(repr=False)
    """Float64 scores of shape (samples,), in the order of the data."""

    @classmethod
    def of(cls, metric: Metric, scores: Array) -> Score:
        low, high = interval(scores)
        return cls(metric=metric, mean=float(scores.mean()), low=low, high=high, samples=len(scores), scores=scores)

    @property
    def name(self) -> str:
        return self.metric.name

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric.name,
            "mean": self.mean,
            "low": finite(self.low),
            "high": finite(self.high),
            "samples": self.samples,
            "higher_is_better": self.metric.higher_is_better,
            "fidelity": self.metric.fidelity,
        }

    def __str__(self) -> str:
        return f"{self.metric.name} {self.mean:.4g} [{self.low:.4g}, {self.high:.4g}] on {self.samples} samples"


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """The scores of one model."""

    scores: Mapping[str, Score]
    """By metric name, in the order asked for; the first is the one that counts."""
    samples: int
    seconds: float
    description: str
    """What really ran."""
    notes: tuple[str, ...] = ()

    @property
    def primary(self) -> Score | None:
        return next(iter(self.scores.values()), None)

    def __getitem__(self, metric: str) -> Score:
        return self.scores[metric]

    def to_json(self) -> dict[str, Any]:
        return {
            "scores": [score.to_json() for score in self.scores.values()],
            "samples": self.samples,
            "seconds": self.seconds,
            "runtime": self.description,
            "notes": list(self.notes),
        }


@attrs.frozen(kw_only=True)
class PairedTest:
    """Whether a difference between two models on the same samples could be chance."""

    name: str
    p: float
    """Two-sided."""
    lost: int
    """Samples that the second model scores worse."""
    gained: int
    difference: float
    """Mean of the second minus mean of the first."""
    low: float
    """Ends of the 95% interval of the difference (t)."""
    high: float

    def to_json(self) -> dict[str, Any]:
        return {key: finite(value) if isinstance(value, float) else value for key, value in attrs.asdict(self).items()}


def evaluate(
    model: Any,
    dataset: Any,
    metrics: Sequence[str | Metric] | None = None,
    *,
    reference: Any = None,
    runtime: str | Mapping[str, Any] | Runtime | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on a dataset, batch by batch.

    Args:
        model: an open `Session`, an `onnx_ir.Model` or a path.
        dataset: a `Dataset`, or any source that `open_dataset` takes.
        metrics: names or instances; None chooses by outputs and labels.
        reference: the original model, for metrics of fidelity; a `Session`, model or path.
        runtime: opens what is not a session; None takes the best installed.
        threads: threads of one inference; None lets the runtime choose.
        batch_size: samples stacked at most, where the model allows it.
        limit: samples used at most, spread evenly over the data where its length is known.
        progress: shows progress; None is silent.

    Raises:
        DataError: the data does not fit, a metric lacks labels, or a metric of fidelity lacks a reference.
        ModelError: the model cannot be run, or its outputs are not finite where a metric needs them.
    """
    return evaluate_many(
        {"model": model},
        dataset,
        metrics,
        reference=reference,
        runtime=runtime,
        threads=threads,
        batch_size=batch_size,
        limit=limit,
        progress=progress,
    )["model"]


def evaluate_many(
    models: Mapping[str, Any],
    dataset: Any,
    metrics: Sequence[str | Metric] | None = None,
    *,
    reference: Any = None,
    runtime: str | Mapping[str, Any] | Runtime | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """As `evaluate`, for several models in one pass over the data. `reference` may be the name of one of them.

    Metrics of fidelity are left out for the model that is the reference.
    """
    data = _dataset(dataset, next(iter(models.values())))
    if limit is not None and data.length is not None and limit < data.length:
        data = data.select(np.arange(limit) * data.length // limit)
    sessions = {name: as_session(model, runtime=runtime, threads=threads) for name, model in models.items()}
    original = sessions[reference] if isinstance(reference, str) and reference in sessions else reference
    if original is not None:
        original = as_session(original, runtime=runtime, threads=threads)
    chosen = choose_metrics(original or next(iter(sessions.values())), data, metrics)
    wanted = {
        name: _measurable(chosen.metrics, session, original, data, bool(metrics)) for name, session in sessions.items()
    }
    tables = {name: {metric: array("d") for metric in wanted[name]} for name in sessions}
    began, samples = time.perf_counter(), 0
    total = data.length if limit is None or data.length is None else min(data.length, limit)
    with (progress or Silent()).task("evaluate", total=total) as advance:
        for batch in data.batches(batch_size, limit):
            _score_batch(batch, sessions, original, tables)
            samples += batch.size
            advance(batch.size)
    if not samples:
        raise DataError(f"{data.name} holds no samples: give at least one")
    seconds = time.perf_counter() - began
    return {
        name: Evaluation(
            scores={metric.name: Score.of(metric, np.array(scores)) for metric, scores in tables[name].items()},
            samples=samples,
            seconds=seconds,
            description=session.description,
            notes=tuple(dict.fromkeys([*chosen.notes, *data.notes])),
        )
        for name, session in sessions.items()
    }


def interval(scores: Array) -> tuple[float, float]:
    """The 95% interval of the mean: Wilson's for 0/1 scores, else by Student's t."""
    from scipy import stats

    if np.isin(scores, (0.0, 1.0)).all():
        found = stats.binomtest(int(scores.sum()), len(scores)).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)
    return _t_interval(scores)


def mcnemar(before: Score | Array, after: Score | Array) -> PairedTest:
    """Test two models scored on the same samples: McNemar's exact test for 0/1 scores, else the paired t test.

    Raises:
        DataError: the scores are not of the same samples.
    """
    from scipy import stats

    higher = before.metric.higher_is_better if isinstance(before, Score) else True
    first, second = (s.scores if isinstance(s, Score) else np.asarray(s, dtype=np.float64) for s in (before, after))
    if len(first) != len(second):
        raise DataError(f"{len(first)} scores cannot be paired with {len(second)}: measure both on the same samples")
    change = second - first
    better = change if higher else -change
    lost, gained = int((better < 0).sum()), int((better > 0).sum())
    if not change.any():
        name, p = "no difference", 1.0
    elif np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        name, p = "McNemar exact", float(stats.binomtest(lost, lost + gained, 0.5).pvalue)
    else:
        name, p = "paired t", _paired_t(change)
    low, high = _t_interval(change)
    return PairedTest(name=name, p=p, lost=lost, gained=gained, difference=float(change.mean()), low=low, high=high)


def _paired_t(change: Array) -> float:
    """Two-sided p; NaN for one sample, 0 when every sample changes by the same amount."""
    from scipy import stats

    if len(change) < 2:
        return float("nan")
    if np.ptp(change) == 0:
        return 0.0
    return float(stats.ttest_1samp(change, 0.0).pvalue)


def _t_interval(values: Array) -> tuple[float, float]:
    from scipy import stats

    count, mean = len(values), float(values.mean())
    if count < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return mean - half, mean + half


def _dataset(source: Any, model: Any) -> Dataset:
    from pumice.data import Dataset, open_dataset

    if isinstance(source, Dataset):
        return source
    return open_dataset(source, None if hasattr(model, "run") and hasattr(model, "description") else model)


def _measurable(
    metrics: Sequence[Metric], session: Session, original: Session | None, data: Dataset, asked: bool
) -> list[Metric]:
    """The metrics that mean something for a session: fidelity needs an original that is not the session itself."""
    if original is not None and session is not original:
        return list(metrics)
    needing = [m for m in metrics if m.fidelity or (Need.LABELS not in m.needs and not data.labelled)]
    left = [m for m in metrics if m not in needing]
    if original is None and needing and (asked or not left):
        raise DataError(
            f"'{needing[0].name}' compares with the original model: give it as the reference, or give labels "
            f"({data.name} has {'labels' if data.labelled else 'none'})"
        )
    return left


def _score_batch(
    batch: Batch,
    sessions: Mapping[str, Session],
    original: Session | None,
    tables: Mapping[str, Mapping[Metric, array[float]]],
) -> None:
    outputs = {name: session.run(batch.feeds) for name, session in sessions.items()}
    reference: dict[str, Array] = {}
    if original is not None:
        known = next((outputs[name] for name, session in sessions.items() if session is original), None)
        reference = original.run(batch.feeds) if known is None else known
    for name, found in outputs.items():
        _refuse_nan(found, sessions[name])
        named = _as_named_in(reference, found)
        for metric, scores in tables[name].items():
            found_scores = np.asarray(metric.score(named, batch.labels, reference), dtype=np.float64)
            scores.extend(_of_samples(found_scores, batch).tolist())


def _of_samples(scores: Array, batch: Batch) -> Array:
    """One score a sample: outputs of a single feed that have no axis of samples are not so many independent samples."""
    rows = next((len(array) for array in batch.feeds.values() if array.ndim > 1), 1)
    if batch.size == 1 and batch.labels is None and len(scores) not in {1, rows}:
        return np.asarray([scores.mean()])
    return scores


def _as_named_in(reference: Mapping[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs under the names that the original gives them; by position where a tool has renamed them."""
    if not reference or outputs.keys() == reference.keys() or len(outputs) != len(reference):
        return outputs
    return dict(zip(reference, outputs.values(), strict=True))


def _refuse_nan(outputs: Mapping[str, Array], session: Session) -> None:
    for name, array_ in outputs.items():
        if "float" in array_.dtype.name and np.isnan(array_).any():
            raise ModelError(
                f"output '{name}' holds NaN ({session.description}): the model overflows on this data, "
                "keep more of it in floating point"
            )


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if value is not None and np.isfinite(value) else None
