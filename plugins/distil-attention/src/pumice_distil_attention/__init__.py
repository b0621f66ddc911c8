"""Where the teacher looks: the places where features are strong, attention maps, and relations between tokens.

    attention-transfer   mean over samples of |a / |a| - b / |b||^2, a = mean over channels of s^2, place by place
                         (Zagoruyko and Komodakis, ICLR 2017)
    attention-maps       mean over queries of KL(teacher's map | student's map)         (TinyBERT: Jiao et al., 2020)
    value-relation       mean over tokens of KL(R_teacher | R_student), R = softmax(V V' / sqrt(d)) in every head
                         (MiniLM: Wang et al., 2020)

The last two take the mean over tokens only, and let padding have no part in relations, where `mask` names the input
that tells the one from the other. None asks for equal widths. Where the numbers of heads differ, maps are averaged over
heads, and values are cut anew into as many relation heads as divide both widths alike. Maps are (N, heads, queries,
keys), values (N, heads, tokens, d).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import DistillationLoss, Loss, Text, hookimpl, knob
from pumice.distil.loss import Target, channel_axis, number
from pumice.errors import DataError

Array = NDArray[Any]
SMALLEST = 1e-12
FAR = 1e4
"""What a score is less by where it is to have no share; float16 holds it."""


@attrs.frozen(kw_only=True)
class AttentionTransfer(DistillationLoss):
    """Places where the features are strong, as in the teacher."""

    name = "attention-transfer"
    compares = "features"
    on_device = True
    same_width = False

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        axis = channel_axis(student)
        own, length = _map(student, axis)
        other, _ = _map(target.value, axis)
        _require_same_places(self.name, own, other)
        difference = own - other
        d_map = 2 * (difference - own * (own * difference).sum(axis=1, keepdims=True)) / (length * len(own))
        d_map = d_map.reshape([1 if i == axis else size for i, size in enumerate(student.shape)])
        return number(np.square(difference).sum() / len(own)), d_map * student * (2 / student.shape[axis])


@attrs.frozen(kw_only=True)
class _OfTokens(DistillationLoss):
    """Base: relations of every token to all, as distributions."""

    on_device = True
    same_width = False
    mask: str = knob("", Text("input"), help="input that is 1 at tokens and 0 at padding, which then counts nothing")


@attrs.frozen(kw_only=True)
class AttentionMaps(_OfTokens):
    """Attention maps as distributions over the keys."""

    name = "attention-maps"
    compares = "attention"

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        own, other = student, target.value
        if own.shape != other.shape and own.ndim == other.ndim == 4:
            own, other = (maps.mean(axis=1, keepdims=True) for maps in (own, other))
        _require_same_places(self.name, own, other)
        rows, q, p = _rows(own, target.mask), np.maximum(own, SMALLEST), np.maximum(other, SMALLEST)
        value = (rows * other * (np.log(p) - np.log(q))).sum()
        grad = -rows * other / q * (own.size / student.size)
        return number(value), np.broadcast_to(grad, student.shape).copy()


@attrs.frozen(kw_only=True)
class ValueRelation(_OfTokens):
    """How alike the values of every two tokens are."""

    name = "value-relation"
    compares = "values"

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        heads = student.shape[1]
        if heads != target.value.shape[1]:
            heads = math.gcd(_width(student), _width(target.value))
            heads = max(h for h in range(1, max(student.shape[1], target.value.shape[1]) + 1) if heads % h == 0)
        values = _cut(student, heads)
        q, scale = _relation(values, target.mask)
        p, _ = _relation(_cut(target.value, heads), target.mask)
        _require_same_places(self.name, q, p)
        rows = _rows(q, target.mask)
        value = (rows * p * (np.log(np.maximum(p, SMALLEST)) - np.log(np.maximum(q, SMALLEST)))).sum()
        d_scores = (q - p) * (rows * scale)
        grad = (d_scores + np.swapaxes(d_scores, -1, -2)) @ values
        return number(value), _cut(grad, student.shape[1])


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


def _rows(relations: Array, mask: Array | None) -> Any:
    """The share of every row of (N, heads, queries, keys) in the mean: a number, or (N, 1, queries, 1).

    Without an axis of heads, or with more than one, it has as many.
    """
    if mask is None:
        return 1 / relations[..., 0].size
    count, *heads, queries, _ = relations.shape
    if mask.shape != (count, queries):
        raise DataError(
            f"the mask of the distillation is {list(mask.shape)} where {[count, queries]} tokens are compared: name an "
            f"input of that shape with the knob 'mask'"
        )
    tokens = mask.reshape(count, *[1] * len(heads), queries, 1).astype(relations.dtype)
    total = tokens.sum()
    return tokens / ((total + (total == 0)) * math.prod(heads))  # a batch of padding alone counts nothing


def _relation(values: Array, mask: Array | None) -> tuple[Array, float]:
    """Softmax of the products of all pairs of tokens, and the factor in it."""
    scale = 1 / math.sqrt(values.shape[-1])
    scores = values @ np.swapaxes(values, -1, -2) * scale
    if mask is not None:
        scores = scores + (mask[:, None, None, :].astype(scores.dtype) - 1) * FAR
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
