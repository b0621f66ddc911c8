"""Relations between the samples of a batch: distances of pairs and angles of triples (Park et al., CVPR 2019).

With x_i the features of sample i, averaged over positions, and h Huber's loss of width 1,

    relational-distance   mean over pairs of h(d_ij - d'_ij), d_ij = |x_i - x_j| / mean of all
    relational-angle      mean over triples of h(c_ijk - c'_ijk), c_ijk = <e_ij, e_kj>

with e_ij = (x_i - x_j) / |x_i - x_j|,

and d', c' of the teacher. Only relations are compared, so the widths of student and teacher need not agree. A batch of
n samples with k channels costs n^2 k for distances and n^3 k for angles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import DistillationLoss, Loss, hookimpl
from pumice.distil.loss import Target, number, pooled, spread
from pumice.errors import DataError

Array = NDArray[Any]
SMALLEST = 1e-12


@attrs.frozen(kw_only=True)
class _Relational(DistillationLoss):
    """Base: features averaged over positions, (samples, channels)."""

    compares = "features"
    same_width = False
    on_device = True
    fewest: ClassVar[int] = 2

    def relations(self, own: Array, other: Array) -> tuple[Any, Array]:
        """The loss of (samples, channels), and its gradient with respect to `own`."""
        raise NotImplementedError

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        if len(student) < self.fewest:
            raise DataError(
                f"the loss '{self.name}' compares samples of a batch and needs {self.fewest} at least: make batches "
                f"larger"
            )
        own = pooled(student)
        value, grad = self.relations(own, pooled(target.value).astype(own.dtype))
        return number(value), spread(grad, student)


@attrs.frozen(kw_only=True)
class RelationalDistance(_Relational):
    """Distances between samples, relative to their mean."""

    name = "relational-distance"

    def relations(self, own: Array, other: Array) -> tuple[Any, Array]:
        (_, distances), (_, wanted) = _gaps(own), _gaps(other)
        pairs = max(1, len(own) * (len(own) - 1))
        mean, their_mean = (np.maximum(d.sum() / pairs, SMALLEST) for d in (distances, wanted))
        value, slope = _huber(distances / mean - wanted / their_mean)
        slope /= pairs
        d_distances = slope / mean - (slope * distances).sum() / mean**2 / pairs
        pull = d_distances / np.maximum(distances, SMALLEST)
        np.fill_diagonal(pull, 0)
        pull = pull + pull.T
        return value.sum() / pairs, pull.sum(axis=1, keepdims=True) * own - pull @ own


@attrs.frozen(kw_only=True)
class RelationalAngle(_Relational):
    """Angles between the directions from one sample to two others."""

    name = "relational-angle"
    fewest = 3

    def relations(self, own: Array, other: Array) -> tuple[Any, Array]:
        gaps, distances = _gaps(own)
        their_gaps, their_distances = _gaps(other)
        samples, value, grad = len(own), 0.0, np.zeros_like(own)
        for at in range(samples):  # the corner of the angle
            e, e_wanted = gaps[:, at] / distances[:, at, None], their_gaps[:, at] / their_distances[:, at, None]
            each, slope = _huber(e @ e.T - e_wanted @ e_wanted.T)
            value += each.sum() / samples**3
            d_e = (slope + slope.T) @ e / samples**3
            d_gap = (d_e - e * (e * d_e).sum(axis=1, keepdims=True)) / distances[:, at, None]
            d_gap[at] = 0
            grad += d_gap
            grad[at] -= d_gap.sum(axis=0)
        return value, grad


def _gaps(x: Array) -> tuple[Array, Array]:
    """x_i - x_j, (n, n, channels), and their lengths, which are never zero."""
    gaps = x[:, None] - x[None]
    return gaps, np.maximum(np.linalg.norm(gaps, axis=2), SMALLEST)


def _huber(x: Array) -> tuple[Array, Array]:
    """Huber's loss of width 1, and its slope."""
    small = np.abs(x) <= 1
    return np.where(small, x**2 / 2, np.abs(x) - 0.5), np.clip(x, -1, 1)


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield from (RelationalDistance, RelationalAngle)
