"""Calibration statistics: what is known of a tensor after all samples have streamed past.

One histogram serves every calibrator. Its bins are the 65,536 bfloat16 numbers: a float32 falls into the bin of its
upper 16 bits, so that the bins are fixed before any data is seen, their width is 1/128 of the value, and the counts are
whole numbers that do not depend on the order of the samples or on how they were batched. Memory is a constant per
tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.dispatch import implementation
from pumice.ops.calibration import BINS
from pumice.ops.record import Node
from pumice.registry import registry


@cache
def _histogram() -> Callable[..., Any]:
    """Counts and extremes of an array, by the quickest kernel installed; all count alike."""
    node = Node(op_type="Histogram", domain="pumice")
    return partial(implementation(node, (), registry().ops, registry().usable_kernels)[1], node)


def _bin_centres() -> NDArray[np.float64]:
    """The middle of every bin; NaN where the bit pattern is not a finite number."""
    low = (np.arange(BINS, dtype=np.uint32) << 16).view(np.float32)
    middle = ((np.arange(BINS, dtype=np.uint32) << 16) | 0x8000).view(np.float32)
    return np.where(np.isfinite(low), middle, np.nan).astype(np.float64)


@attrs.define(eq=False)
class ChannelStatistics:
    """Streaming extremes and mean squares of a tensor, for each index of `axis`.

    One entry if it has no such axis, or if its length changes from sample to sample.
    """

    axis: int = 1
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    squares: NDArray[np.float64] | None = None
    count: int = 0
    """Values seen per channel."""

    def update(self, array: NDArray[np.float32]) -> None:
        if array.size == 0:
            return
        if self.axis == 1 and array.ndim < 3:
            rows = array.reshape(1, -1)
        else:
            rows = np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        squares = np.einsum("cn,cn->c", rows, rows, dtype=np.float64, casting="unsafe")
        count = rows.shape[1]
        if self.low is None or self.high is None or self.squares is None:
            self.low, self.high, self.squares, self.count = low, high, squares, count
            return
        if len(low) != len(self.low):  # no channels then, but time or positions: all are taken together
            self._take_together()
            count *= len(low)
            low, high, squares = low.min(keepdims=True), high.max(keepdims=True), squares.sum(keepdims=True)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.squares = self.squares + squares
        self.count += count

    def _take_together(self) -> None:
        assert self.low is not None
        assert self.high is not None
        assert self.squares is not None
        self.count *= len(self.low)
        self.low, self.high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        self.squares = self.squares.sum(keepdims=True)

    @property
    def channels(self) -> int:
        """Number of entries; 0 if nothing was seen."""
        return 0 if self.low is None else len(self.low)

    @property
    def finite(self) -> bool:
        """Whether no value seen was infinite or NaN."""
        return self.squares is None or bool(np.isfinite(self.squares).all())

    @property
    def mean_square(self) -> NDArray[np.float64]:
        assert self.squares is not None, "no sample was seen"
        return self.squares / max(self.count, 1)

    @property
    def largest(self) -> NDArray[np.float64]:
        """Largest magnitude of every channel."""
        assert self.low is not None, "no sample was seen"
        assert self.high is not None, "no sample was seen"
        return np.maximum(np.abs(self.low), np.abs(self.high))


@attrs.define(eq=False)
class Statistics:
    """Streaming statistics of one tensor."""

    counts: NDArray[np.int64] = attrs.field(factory=lambda: np.zeros(BINS, np.int64))
    low: float = np.inf
    high: float = -np.inf
    average_low: float = 0.0
    average_high: float = 0.0
    samples: int = 0
    momentum: float = 0.9

    def update(self, array: NDArray[np.float32], samples: int = 1) -> None:
        """Take in the values of `samples` samples; axis 0 is the sample axis if its length is `samples`."""
        if array.size == 0:
            return
        array = np.ascontiguousarray(array, np.float32)
        counts, extremes = _histogram()(array)
        self.counts += counts
        ranges = [tuple(extremes.tolist())]
        if samples > 1 and array.shape[:1] == (samples,):
            rows = array.reshape(samples, -1)
            ranges = list(zip(rows.min(axis=1).tolist(), rows.max(axis=1).tolist(), strict=True))
        for low, high in ranges:
            self.low, self.high = min(self.low, low), max(self.high, high)
            keep = self.momentum if self.samples else 0.0
            self.average_low = keep * self.average_low + (1 - keep) * low
            self.average_high = keep * self.average_high + (1 - keep) * high
            self.samples += 1

    def merge(self, other: Statistics) -> None:
        """Take in another tensor, which is to have the same range. The averages become the wider ones."""
        if not other.seen:
            return
        self.counts += other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.average_low = min(self.average_low, other.average_low) if self.seen else other.average_low
        self.average_high = max(self.average_high, other.average_high) if self.seen else other.average_high
        self.samples += other.samples

    @property
    def seen(self) -> bool:
        return self.samples > 0

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres of the occupied bins, ascending and clipped to [low, high], and their counts."""
        occupied = np.flatnonzero(self.counts)
        centres = _bin_centres()[occupied]
        order = np.argsort(centres, kind="stable")
        return np.clip(centres[order], self.low, self.high), self.counts[occupied][order].astype(np.float64)
