"""Metrics: one score a sample, from a model's outputs and either the labels or the original model's outputs.

Axis 0 of an output counts samples; further axes between it and the class axis count positions (tokens, frames, pixels)
and are averaged within the sample, so that every score of an accuracy lies in [0, 1].

    top-k            labels     is the label among the k largest scores?  (one column: on its side of `threshold`?)
    token-accuracy   labels     share of positions whose largest score is the label; `ignore` marks padding
    sequence-accuracy labels    1 if every position that counts is right
    mse              labels     mean of (output - label)^2          (against the original where there are no labels)
    cosine           labels     <a, b> / (|a| |b|)                  (likewise)
    agreement        original   share of positions where both models have the same largest score
    relative-error   original   |a - b| / |b|

Fidelity metrics look at every floating-point output and score a sample by its *worst* output. A model with no such
output is judged by equality of its integer outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError, nearest
from pumice.knobs import Float, Int, Text, knob
from pumice.strategy import Metric, Need

Array = NDArray[Any]
Outputs = Mapping[str, Array]


@attrs.frozen(kw_only=True)
class _Labelled(Metric):
    """Base of the metrics of class labels."""

    needs = frozenset({Need.LABELS})
    output: str = knob(
        "", Text("name of an output"), help="the output with the class scores; empty takes the first that fits"
    )

    def scores_and_classes(self, outputs: Outputs, labels: Any) -> tuple[Array, Array]:
        """Class scores with the classes on the last axis, and integer labels of the shape before it."""
        labels = _as_labels(labels, self.name)
        scores = self._output(outputs, labels)
        if labels.ndim == scores.ndim and labels.shape == scores.shape and scores.shape[-1] > 1:
            labels = labels.argmax(axis=-1)  # one-hot, or soft labels
        if labels.ndim == scores.ndim and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if labels.shape != scores.shape[:-1]:
            moved = np.moveaxis(scores, 1, -1) if scores.ndim > 2 else scores
            if labels.shape != moved.shape[:-1]:
                raise DataError(
                    f"{self.name}: labels of shape {list(labels.shape)} do not fit class scores of shape "
                    f"{list(scores.shape)}; give one label a position, or name the output with the knob 'output'"
                )
            scores = moved  # classes on axis 1, as in segmentation
        return scores, labels

    def _output(self, outputs: Outputs, labels: Array) -> Array:
        if self.output:
            if self.output not in outputs:
                raise DataError(f"{self.name}: the model has no output '{self.output}'{nearest(self.output, outputs)}")
            return _as_scores(outputs[self.output])
        candidates = [a for a in outputs.values() if _is_float(a)] or list(outputs.values())
        fitting = [a for a in candidates if a.ndim > labels.ndim] or [a for a in candidates if a.ndim == labels.ndim]
        return _as_scores((fitting or candidates)[0])


@attrs.frozen(kw_only=True)
class TopK(_Labelled):
    """Base of top1 and top5."""

    threshold: float = knob(
        0.5, Float(-1e9, 1e9), help="an output of one column counts as class 1 above this (0 for logits)"
    )

    @property
    def k(self) -> int:
        raise NotImplementedError

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        scores, classes = self.scores_and_classes(outputs, labels)
        if scores.shape[-1] == 1:
            right = (scores[..., 0] > self.threshold) == (classes > 0)
        else:
            _check_range(classes, scores.shape[-1], self.name)
            right = _in_top(scores, classes, self.k)
        return _per_sample(right)


@attrs.frozen(kw_only=True)
class Top1(TopK):
    """Is the label the class with the largest score?"""

    name = "top1"

    @property
    def k(self) -> int:
        return 1


@attrs.frozen(kw_only=True)
class Top5(TopK):
    """Is the label among the five classes with the largest scores?"""

    name = "top5"

    @property
    def k(self) -> int:
        return 5


@attrs.frozen(kw_only=True)
class _Sequence(_Labelled):
    ignore: int = knob(-100, Int(-(2**31), 2**31), help="label of positions that do not count")

    def right_and_counted(self, outputs: Outputs, labels: Any) -> tuple[Array, Array]:
        """Two boolean arrays of shape (samples, positions)."""
        scores, classes = self.scores_and_classes(outputs, labels)
        counted = classes != self.ignore
        _check_range(classes[counted], scores.shape[-1], self.name)
        right = scores.argmax(axis=-1) == classes
        return right.reshape(len(right), -1), counted.reshape(len(right), -1)


@attrs.frozen(kw_only=True)
class TokenAccuracy(_Sequence):
    """Share of the positions of a sample whose largest score is the label."""

    name = "token-accuracy"

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        right, counted = self.right_and_counted(outputs, labels)
        return np.asarray((right & counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1), dtype=np.float64)


@attrs.frozen(kw_only=True)
class SequenceAccuracy(_Sequence):
    """Is every position of a sample right?"""

    name = "sequence-accuracy"

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        right, counted = self.right_and_counted(outputs, labels)
        return np.asarray((right | ~counted).all(axis=1), dtype=np.float64)


@attrs.frozen(kw_only=True)
class _Distance(Metric):
    """Base of the metrics that compare arrays: with labels of the output's shape, else with the original model."""

    def between(self, ours: Array, theirs: Array) -> Array:
        """Scores of shape (samples,) for two arrays of shape (samples, items)."""
        raise NotImplementedError

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        if labels is None or not _is_float(np.asarray(labels)):
            worst = np.minimum if self.higher_is_better else np.maximum
            return _worst(outputs, reference, self.between, worst)
        wanted = np.asarray(labels)
        matching = [a for a in outputs.values() if _is_float(a) and a.size == wanted.size and len(a) == len(wanted)]
        if not matching:
            shapes = ", ".join(str(list(a.shape)) for a in outputs.values())
            raise DataError(
                f"{self.name}: labels of shape {list(wanted.shape)} fit no output (shapes {shapes}): check them"
            )
        return self.between(_flat(matching[0]), _flat(wanted))


@attrs.frozen(kw_only=True)
class Mse(_Distance):
    """Mean squared difference from the labels, or from the original model where there are none."""

    name = "mse"
    higher_is_better = False

    def between(self, ours: Array, theirs: Array) -> Array:
        return np.asarray(np.square(ours - theirs).mean(axis=1), dtype=np.float64)


@attrs.frozen(kw_only=True)
class Cosine(_Distance):
    """Cosine similarity to the labels, or to the original model's outputs where there are none."""

    name = "cosine"

    def between(self, ours: Array, theirs: Array) -> Array:
        return _cosine(ours, theirs)


@attrs.frozen(kw_only=True)
class RelativeError(Metric):
    """Norm of the difference from the original model's outputs over their norm."""

    name = "relative-error"
    higher_is_better = False
    fidelity = True

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        return _worst(outputs, reference, _relative_error, np.maximum)


@attrs.frozen(kw_only=True)
class Agreement(Metric):
    """Share of positions where the compressed and the original model have the same largest score."""

    name = "agreement"
    fidelity = True
    threshold: float = knob(
        0.5, Float(-1e9, 1e9), help="an output of one column counts as class 1 above this (0 for logits)"
    )

    def score(self, outputs: Outputs, labels: Any, reference: Outputs) -> Array:
        pairs = _float_pairs(outputs, reference)
        if not pairs:
            return _worst(outputs, reference, _equal, np.minimum)
        ranked = [pair for pair in pairs if pair[0].ndim >= 2] or pairs
        return _combined([_per_sample(self._same(*pair)) for pair in ranked], np.minimum)

    def _same(self, ours: Array, theirs: Array) -> Array:
        if ours.ndim < 2 or ours.shape[-1] == 1:
            return np.asarray((ours > self.threshold) == (theirs > self.threshold))
        return np.asarray(ours.argmax(axis=-1) == theirs.argmax(axis=-1))


BUILTIN_METRICS: tuple[type[Metric], ...] = (
    Top1,
    Top5,
    TokenAccuracy,
    SequenceAccuracy,
    Mse,
    Cosine,
    Agreement,
    RelativeError,
)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _is_float(array: Array) -> bool:
    """True for floating types, `bfloat16` and its kin included (NumPy files those under kind V)."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def _as_scores(array: Array) -> Array:
    array = array.astype(np.float32) if array.dtype.kind == "V" else array
    return array[:, None] if array.ndim == 1 else array


def _as_labels(labels: Any, metric: str) -> Array:
    if labels is None:
        raise DataError(f"{metric} needs labels and the data has none: give labels, or choose 'agreement' or 'cosine'")
    array = np.asarray(labels)
    if array.dtype.kind not in "iufb":
        raise DataError(f"{metric} needs numbers as labels, not {array.reshape(-1)[:1].tolist()}: number the classes")
    return array if array.dtype.kind in "iu" or not np.array_equal(array, np.rint(array)) else array.astype(np.int64)


def _check_range(classes: Array, count: int, metric: str) -> None:
    if classes.size and not 0 <= classes.min() <= classes.max() < count:
        worst = classes.max() if classes.max() >= count else classes.min()
        raise DataError(f"{metric}: label {worst} is none of the {count} classes of the output (0 to {count - 1})")


def _in_top(scores: Array, classes: Array, k: int) -> Array:
    """True where fewer than k classes outrank the label. Of equal scores the class with the lower number is first."""
    own = np.take_along_axis(scores, classes[..., None].astype(np.int64), axis=-1)
    before = np.arange(scores.shape[-1]) < classes[..., None]
    return np.asarray(((scores > own) | ((scores == own) & before)).sum(axis=-1) < k)


def _per_sample(right: Array) -> Array:
    return np.asarray(right.reshape(len(right), -1).mean(axis=1), dtype=np.float64)


def _flat(array: Array) -> Array:
    array = np.atleast_1d(array)
    return array.reshape(len(array), -1).astype(np.float64)


def _cosine(ours: Array, theirs: Array) -> Array:
    """1 where both vectors are zero, 0 where one is."""
    ours, theirs = _without_common_infinities(ours, theirs)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    both_zero = ~ours.any(axis=1) & ~theirs.any(axis=1)
    dots = np.einsum("ij,ij->i", ours, theirs)
    return np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), both_zero.astype(np.float64))


def _relative_error(ours: Array, theirs: Array) -> Array:
    """Where the original is zero: the norm of ours."""
    ours, theirs = _without_common_infinities(ours, theirs)
    norms = np.linalg.norm(theirs, axis=1)
    return np.asarray(np.linalg.norm(ours - theirs, axis=1) / np.where(norms > 0, norms, 1.0))


def _without_common_infinities(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Both arrays with zeros where both hold the same infinity, as a mask of -inf leaves it."""
    same = np.isinf(theirs) & (ours == theirs)
    return (np.where(same, 0.0, ours), np.where(same, 0.0, theirs)) if same.any() else (ours, theirs)


def _equal(ours: Array, theirs: Array) -> Array:
    return np.asarray((ours == theirs).mean(axis=1))


def _float_pairs(outputs: Outputs, reference: Outputs) -> list[tuple[Array, Array]]:
    """Floating-point outputs of both models that hold something, as float32 or wider; of equal shapes."""
    pairs = []
    for name, theirs in reference.items():
        if name in outputs and _is_float(theirs) and (theirs.size or outputs[name].size):
            ours = outputs[name]
            if ours.shape != theirs.shape:
                raise DataError(
                    f"output '{name}' has shape {list(ours.shape)} but that of the original has {list(theirs.shape)}: "
                    "the models do not answer alike"
                )
            pairs.append((_widened(ours), _widened(theirs)))
    return pairs


def _widened(array: Array) -> Array:
    return array if array.dtype.kind == "f" and array.itemsize >= 4 else array.astype(np.float32)


def _worst(
    outputs: Outputs,
    reference: Outputs,
    between: Callable[[Array, Array], Array],
    worst: Callable[[Array, Array], Array],
) -> Array:
    """The worst score of each sample over the floating-point outputs, or over the integer ones if there are none."""
    pairs = _float_pairs(outputs, reference)
    if not pairs:
        shared = [
            name
            for name, theirs in reference.items()
            if name in outputs and theirs.size and outputs[name].shape == theirs.shape
        ]
        pairs = [(outputs[name], reference[name]) for name in shared]
        between = _equal if worst is np.minimum else lambda a, b: 1.0 - _equal(a, b)
    if not pairs:
        raise DataError(
            "the two models share no output that holds anything and could be compared: compare models with the same "
            "outputs"
        )
    return _combined([between(_flat(a), _flat(b)) for a, b in pairs], worst)


def _combined(scores: list[Array], worst: Callable[[Array, Array], Array]) -> Array:
    """Scores of several outputs joined by sample; one score in all if the outputs count samples differently."""
    if len({len(s) for s in scores}) > 1:
        scores = [np.asarray([s.mean()]) for s in scores]
    found = scores[0]
    for other in scores[1:]:
        found = worst(found, other)
    return np.asarray(found, dtype=np.float64)
