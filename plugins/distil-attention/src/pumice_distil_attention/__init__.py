"""Where the teacher looks: the places where features are strong, attention maps, and relations between tokens.

    attention-transfer   mean over samples of |a / |a| - b / |b||^2, a = mean over channels of s^2, place by place
                         (Zagoruyko and Komodakis, ICLR 2017)
    attention-maps       mean over queries of KL(teacher's map | student's map)         (TinyBERT: Jiao et al., 2020)
    value-relation       mean over tokens of KL(R_teacher | R_student), R = softmax(V V' / sqrt(d)) in every head
                         (MiniLM: Wang et al., 2020)

None asks for equal widths. Where the numbers of heads differ, maps are averaged over heads, and values are cut anew
into as many relation heads as divide both widths alike. Maps are (N, heads, queries, keys), values (N, heads, tokens,
d).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import DistillationLoss, Loss, hookimpl
from pumice.distil.loss import Target, channel_axis
from pumice.errors import DataError

Array = NDArray[Any]
SMALLEST = 1e-12


@attrs.frozen(kw_only=True)
class AttentionTransfer(DistillationLoss):
    """Places where the features are strong, as in the teacher."""

    name = "attention-transfer"
    compares = "features"
    same_width = False

    def compare(self, student: Array, target: Target, progress: float) -> tuple[float, Array]:
        axis = channel_axis(student)
        own, length = _map(student, axis)
        other, _ = _map(target.value, axis)
        _require_same_places(self.name, own, other)
        difference = own - other
        d_map = 2 * (difference - own * (own * difference).sum(axis=1, keepdims=True)) / (length * len(own))
        d_map = np.expand_dims(d_map.reshape(np.delete(student.shape, axis)), axis)
        return float(np.square(difference).sum() / len(own)), d_map * student * (2 / student.shape[axis])


@attrs.frozen(kw_only=True)
class AttentionMaps(DistillationLoss):
    """Attention maps as distributions over the keys."""

    name = "attention-maps"
    compares = "attention"
    same_width = False

    def compare(self, student: Array, target: Target, progress: float) -> tuple[float, Array]:
        own, other = student, target.value
        if own.shape != other.shape and own.ndim == other.ndim == 4:
            own, other = (maps.mean(axis=1, keepdims=True) for maps in (own, other))
        _require_same_places(self.name, own, other)
        rows, q, p = own[..., 0].size, np.maximum(own, SMALLEST), np.maximum(other, SMALLEST)
        value = (other * (np.log(p) - np.log(q))).sum() / rows
        grad = -other / q / rows * (own.size / student.size)
        return float(value), np.array(np.broadcast_to(grad, student.shape))


@attrs.frozen(kw_only=True)
class ValueRelation(DistillationLoss):
    """How alike the values of every two tokens are."""

    name = "value-relation"
    compares = "values"
    same_width = False

    def compare(self, student: Array, target: Target, progress: float) -> tuple[float, Array]:
        heads = student.shape[1]
        if heads != target.value.shape[1]:
            heads = math.gcd(_width(student), _width(target.value))
            heads = max(h for h in range(1, max(student.shape[1], target.value.shape[1]) + 1) if heads % h == 0)
        values = _cut(student, heads)
        q, scale = _relation(values)
        p, _ = _relation(_cut(target.value, heads))
        _require_same_places(self.name, q, p)
        rows = q[..., 0].size
        value = (p * (np.log(np.maximum(p, SMALLEST)) - np.log(np.maximum(q, SMALLEST)))).sum() / rows
        d_scores = (q - p) * (scale / rows)
        grad = (d_scores + np.swapaxes(d_scores, -1, -2)) @ values
        return float(value), _cut(grad, student.shape[1])


def _map(x: Array, axis: int) -> tuple[Array, Array]:
    """Strength of every place, (samples, places), of length one; and the length that it had."""
    strength = np.square(x).mean(axis=axis).reshape(len(x), -1)
    length = np.maximum(np.linalg.norm(strength, axis=1, keepdims=True), SMALLEST)
    return strength / length, length


def _width(values: Array) -> int:
    return int(values.shape[1] * values.shape[3])


def _cut(values: Array, heads: int) -> Array:
    """(N, heads, tokens, width of a head) with another number of heads."""
    samples, _, tokens, _ = values.shape
    joined = values.transpose(0, 2, 1, 3).reshape(samples, tokens, heads, _width(values) // heads)
    return joined.transpose(0, 2, 1, 3)


def _relation(values: Array) -> tuple[Array, float]:
    """Softmax of the products of all pairs of tokens, and the factor in it."""
    scale = 1 / math.sqrt(values.shape[-1])
    scores = values @ np.swapaxes(values, -1, -2) * scale
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True), scale


def _require_same_places(name: str, own: Array, other: Array) -> None:
    if own.shape != other.shape:
        raise DataError(
            f"the loss '{name}' compares place by place, but the student has {list(own.shape[1:])} places a sample and "
            f"the teacher {list(other.shape[1:])}: name values of one resolution with the knob 'at'"
        )


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield from (AttentionTransfer, AttentionMaps, ValueRelation)
