"""The two records of a benchmark: a case (model, data, metric) and the outcome of evaluating one model on it.

An evaluation keeps one score per sample, whose mean is the metric unless the metric says otherwise, and one *answer*
per sample: the decoded prediction. Two models are compared answer by answer. The comparison is the fraction of equal
answers, unless the case's answers are maps (intersection over union) or unit vectors (cosine).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

Feed = Mapping[str, np.ndarray]
"""Input name to array; the leading axis is the batch (for recurrent streams: the frame) axis."""

Run = Callable[[Feed], Mapping[str, np.ndarray]]
"""A model ready to run in some runtime: feed to outputs by name, in the model's own order."""

Z95 = 1.959963984540054


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What one model scored on one case."""

    metric: str
    """Name of the metric, e.g. `accuracy`."""
    value: float
    """The metric over the whole set."""
    scores: np.ndarray
    """(samples,) the metric's contribution of every sample, float."""
    answers: np.ndarray
    """(answers, ...) the decoded predictions: class numbers, strings, maps or unit vectors. May hold more rows than
    `scores` where unlabelled samples or extra views are compared too."""
    higher_is_better: bool = True
    secondary: Mapping[str, float] = attrs.field(factory=dict)
    """Further figures of the same run, e.g. `{"cer": 0.014}`."""

    def interval(self) -> tuple[float, float]:
        """The 95% interval of `value`: Wilson's for right-or-wrong scores, else `value` +- 1.96 standard errors."""
        count = len(self.scores)
        if np.isin(self.scores, (0.0, 1.0)).all():
            centre = (self.value + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
            spread = self.value * (1 - self.value) / count + Z95**2 / (4 * count**2)
            half = Z95 * np.sqrt(spread) / (1 + Z95**2 / count)
            return float(centre - half), float(centre + half)
        half = Z95 * self.scores.std(ddof=1) / np.sqrt(count)
        return float(self.value - half), float(self.value + half)


def equal_answers(answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) 1.0 where the answers are the same."""
    return (answers == reference).astype(float)


def overlap(answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of (n, height, width) boolean maps; two empty maps count as 0."""
    joint = (answers & reference).sum(axis=(1, 2))
    either = (answers | reference).sum(axis=(1, 2))
    return np.asarray(joint / np.maximum(1, either))


def cosine(answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) cosine between unit vectors (n, width)."""
    return np.asarray((answers * reference).sum(axis=1))


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """One model, the data it is calibrated and judged on, and how. Nothing is fetched before it is asked for."""

    id: str
    summary: str
    """One line: what the network is and what it is judged by."""
    packages: tuple[str, ...] = ()
    """Names in `store.PACKAGES` that the model and its data come from."""
    locate: Callable[[], Path]
    calibrate: Callable[[], list[Feed]]
    sample: Callable[[], Feed]
    judge: Callable[[Run], Evaluation]
    agree: Callable[[np.ndarray, np.ndarray], np.ndarray] = equal_answers
    """(answers, reference answers) -> per-answer agreement in [0, 1]."""
    agreement_name: str = "same answer"

    @property
    def path(self) -> Path:
        """The float ONNX file; fetched and converted on first use."""
        return self.locate()

    @property
    def feed(self) -> Feed:
        """One feed to time a model with."""
        return self.sample()

    def calibration(self) -> list[Feed]:
        """The calibration feeds, disjoint from the evaluation set except where the case says otherwise."""
        return self.calibrate()

    def evaluate(self, run: Run) -> Evaluation:
        """Judge a model, given as a callable; deterministic for a deterministic `run`."""
        return self.judge(run)

    def agreement(self, evaluation: Evaluation, reference: Evaluation) -> float:
        """Mean agreement of two evaluations of this case, answer by answer; 1.0 is identical, NaN answers are 0."""
        return float(np.nan_to_num(self.agree(evaluation.answers, reference.answers)).mean())


def first_output(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The model's first output."""
    return next(iter(outputs.values()))


def accuracy(right: Any, answers: Any, **secondary: float) -> Evaluation:
    """The evaluation of a right-or-wrong metric. `right`: (n,) booleans; `answers`: (m, ...)."""
    scores = np.asarray(right, dtype=float)
    return Evaluation(
        metric="accuracy", value=float(scores.mean()), scores=scores, answers=np.asarray(answers), secondary=secondary
    )
