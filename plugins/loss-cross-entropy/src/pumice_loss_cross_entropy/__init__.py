"""Cross-entropy of class scores, position by position: for classification, segmentation and sequences of tokens.

With z the scores of a position (before softmax), p = softmax(z), t its class, C the number of classes and e the
smoothing, the target is q[c] = (1 - e) [c = t] + e / C and

    loss = mean over positions of  - sum over c of q[c] log p[c]        d loss / d z = (p - q) / positions

Positions labelled `ignore` count for nothing. Where the model itself ends in a softmax, its rows are probabilities;
then log p is the logarithm of the output and the gradient - q / p. Scores are (N, ..., C), or (N, C, ...) as in
segmentation; labels are class numbers (N, ...), or one-hot or soft labels in the shape of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Choice, Float, Int, Loss, Need, Text, hookimpl, knob
from pumice.errors import DataError, nearest
from pumice.ops.dtypes import is_float

Array = NDArray[Any]
SMALLEST = 1e-30
"""Least probability whose logarithm is taken."""


@attrs.frozen(kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy of class scores with class labels, with label smoothing and an ignored class."""

    name = "cross-entropy"
    needs = frozenset({Need.LABELS})
    label_smoothing: float = knob(0.0, Float(0.0, 0.99), help="share of the target spread evenly over all classes")
    ignore: int = knob(-100, Int(-(2**31), 2**31 - 1), help="class number of positions that do not count")
    scores: str = knob(
        "auto", Choice("auto", "logits", "probabilities"), help="what the output holds; auto looks at its rows"
    )
    output: str = knob("", Text("name of an output"), help="output with the scores; empty takes the first that fits")

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        if batch.labels is None:
            raise DataError("the loss 'cross-entropy' needs labels: add them to the data, or choose another loss")
        labels: Any = batch.labels if hasattr(batch.labels, "__array_function__") else np.asarray(batch.labels)
        name = self.output or _fitting(outputs, labels)
        if name not in outputs:
            raise DataError(
                f"the loss 'cross-entropy' is set to output '{name}', which the model lacks{nearest(name, outputs)}"
            )
        scores = outputs[name]
        last = _classes_last(scores, labels)
        rows = scores if last else np.moveaxis(scores, 1, -1)
        flat = rows.reshape(-1, rows.shape[-1]).astype(np.result_type(rows.dtype, np.float32), copy=False)
        value, grad = self._rows(flat, self._targets(labels, scores, flat, last))
        grad = grad.reshape(rows.shape)
        return value, {name: grad if last else np.moveaxis(grad, -1, 1)}

    def _targets(self, labels: Any, scores: Array, flat: Array, last: bool) -> Array:
        """Distributions (positions, classes); zero rows where a position does not count."""
        classes = flat.shape[1]
        if labels.shape == scores.shape:
            soft = labels if last else np.moveaxis(labels, 1, -1)
            target = soft.reshape(flat.shape).astype(flat.dtype)
        else:
            index = labels.reshape(-1).astype(np.int64)
            counted = index != self.ignore
            wrong = counted & ((index < 0) | (index >= classes))
            if not isinstance(labels, np.ndarray):
                return self._smoothed(_targets_there(index, counted, wrong, flat))
            if wrong.any():
                raise DataError(
                    f"label {index[wrong][0]} is not one of the {classes} classes of the model: correct the labels, or "
                    f"set the knob 'ignore' of the loss to it"
                )
            target = np.zeros_like(flat)
            target[counted, index[counted]] = 1
        return self._smoothed(target)

    def _smoothed(self, target: Any) -> Array:
        counts = target.any(axis=1, keepdims=True)
        smooth: Array = (1 - self.label_smoothing) * target + counts * (self.label_smoothing / target.shape[1])
        return smooth

    def _rows(self, scores: Array, target: Array) -> tuple[Any, Array]:
        positions = np.maximum(target.any(axis=1).sum(), 1).astype(scores.dtype)
        kind = self.scores
        if kind == "auto":
            kind = "probabilities" if _are_distributions(scores) else "logits"
        if kind == "probabilities":
            safe = np.maximum(scores, SMALLEST)
            return _number(-(target * np.log(safe)).sum() / positions), -target / safe / positions
        shifted = scores - scores.max(axis=1, keepdims=True)
        powers = np.exp(shifted)
        total = powers.sum(axis=1, keepdims=True)
        value = -(target * (shifted - np.log(total))).sum() / positions
        mass = target.sum(axis=1, keepdims=True)
        return _number(value), (powers / total * mass - target) / positions


def _targets_there(index: Any, counted: Any, wrong: Any, flat: Any) -> Any:
    """The same on a device, which is not waited for: a wrong label makes the loss NaN instead of an error here."""
    hot = (index[:, None] == np.cumsum(np.ones_like(flat[:1], dtype=np.int64), axis=1) - 1) & counted[:, None]
    return np.where(wrong[:, None], np.nan, hot).astype(flat.dtype)


def _number(value: Any) -> Any:
    """A number of NumPy as Python's; that of a device stays there."""
    return float(value) if isinstance(value, np.generic) else value


def _are_distributions(rows: Array) -> bool:
    return bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=1) - 1) < 1e-3))


def _classes_last(scores: Array, labels: Array) -> bool:
    """Whether the classes are on the last axis, not on axis 1."""
    if labels.shape == scores.shape:
        return scores.ndim < 4
    return labels.shape in (scores.shape[:-1], (*scores.shape[:-1], 1))


def _without(scores: Array, axis: int) -> tuple[int, ...]:
    return (*scores.shape[:axis], *scores.shape[axis + 1 :])


def _fitting(outputs: Mapping[str, Array], labels: Array) -> str:
    """The first output whose shape is that of the labels with a class axis added, or equal to it."""
    for name, scores in outputs.items():
        shapes = {scores.shape, scores.shape[:-1], (*scores.shape[:-1], 1)}
        if scores.ndim > 1:
            shapes.add(_without(scores, 1))
        if is_float(scores.dtype) and labels.shape in shapes:
            return name
    shown = ", ".join(f"{name} {list(y.shape)}" for name, y in outputs.items())
    raise DataError(
        f"labels of shape {list(labels.shape)} fit no output ({shown}) for the loss 'cross-entropy': give one class "
        f"number a position"
    )


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield CrossEntropy
