"""Features of the student pulled towards those of the teacher: by square, by direction, or by who is near whom.

    feature-mse       mean (s - t)^2 / mean t^2                                              (Romero et al., ICLR 2015)
    feature-cosine    mean over positions of 1 - cos(s, t) along the channels
    pkt               mean over samples i of sum over j of p(j|i) log(p(j|i) / q(j|i))       (Passalis and Tefas, 2018)

with p(j|i) the share of sample j in the similarities (1 + cos) / 2 of the others to sample i of the batch, q the same
of the student. The first two compare element by element, after a connector where widths differ; `pkt` compares within
a batch, so widths need not agree. Channels are on axis 1 of pictures (N, C, H, W), else on the last axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import DistillationLoss, Flag, Loss, hookimpl, knob
from pumice.distil.loss import Target, channel_axis, number, pooled, spread
from pumice.errors import DataError
from pumice.ops.gradient import namespace

Array = NDArray[Any]
SMALLEST = 1e-12


@attrs.frozen(kw_only=True)
class FeatureMse(DistillationLoss):
    """Mean squared difference of the features, relative to the size of the teacher's."""

    name = "feature-mse"
    compares = "features"
    on_device = True
    relative: bool = knob(True, Flag(), help="divide by the mean square of the teacher's features")

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        difference = student - target.value
        scale = number(np.square(target.value).mean()) + SMALLEST if self.relative else 1.0
        return number(np.square(difference).mean()) / scale, difference * (2 / (difference.size * scale))


@attrs.frozen(kw_only=True)
class FeatureCosine(DistillationLoss):
    """One minus the cosine of the features of every position."""

    name = "feature-cosine"
    compares = "features"
    on_device = True

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        axis = channel_axis(student)
        own, length = _unit(student, axis)
        other, _ = _unit(target.value, axis)
        cosine = (own * other).sum(axis=axis, keepdims=True)
        return number(1 - cosine.mean()), (own * cosine - other) / (length * cosine.size)


@attrs.frozen(kw_only=True)
class Pkt(DistillationLoss):
    """Which samples of a batch are near each other, as a distribution for every sample."""

    name = "pkt"
    compares = "features"
    on_device = True
    same_width = False

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        if len(student) < 3:
            raise DataError("the loss 'pkt' compares samples of a batch and needs three at least: make batches larger")
        x = pooled(student)
        units, length = _unit(x, 1)
        near, total = _similarities(units)
        theirs, their_total = _similarities(_unit(pooled(target.value), 1)[0])
        p, q, samples = theirs / their_total, near / total, len(x)
        own_share = namespace(x).eye(samples, dtype=x.dtype)  # added where a sample meets itself, and shares are zero
        value = (p * np.log((p + own_share) / (q + own_share))).sum() / samples
        d_near = (1 / total - p / (near + own_share)) * (1 - own_share) / (2 * samples)
        d_units = (d_near + d_near.T) @ units
        grad = (d_units - units * (units * d_units).sum(axis=1, keepdims=True)) / length
        return number(value), spread(grad, student)


def _unit(x: Array, axis: int) -> tuple[Array, Array]:
    """Vectors of length one, and the lengths that they had."""
    length = np.maximum(np.linalg.norm(x, axis=axis, keepdims=True), SMALLEST)
    return x / length, length


def _similarities(units: Array) -> tuple[Array, Array]:
    """Of every sample with the others, zero with itself; and their sum."""
    near = np.maximum((1 + units @ units.T) / 2, SMALLEST)
    np.fill_diagonal(near, 0)
    return near, near.sum(axis=1, keepdims=True)


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield from (FeatureMse, FeatureCosine, Pkt)
