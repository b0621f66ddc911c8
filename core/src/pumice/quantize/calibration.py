"""Calibrators: from the statistics of a tensor to the range that its integers should cover.

A wide range clips nothing and rounds coarsely; a narrow one rounds finely and clips. `minmax` covers everything seen;
`moving-average` follows the per-sample extremes; `percentile` leaves out a stated share of the values; `entropy`
(Migacz, GTC 2017) takes the range whose quantized histogram is closest to the original in Kullback-Leibler divergence;
`mse` the one with the least expected squared error, rounding (step^2 / 12 inside the range) and clipping together.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.quantize.statistics import Statistics

Range = tuple[float, float]


@attrs.frozen(kw_only=True)
class Calibrator:
    """Chooses ranges. `levels` is the number of integers of the activation type."""

    method: str = "minmax"
    percentile: float = 99.99
    symmetric: bool = False
    levels: int = 256

    def range(self, statistics: Statistics) -> Range:
        """The (low, high) to cover; (0, 0) if nothing was seen."""
        if not statistics.seen:
            return 0.0, 0.0
        return _METHODS[self.method](self, statistics)


def _minmax(_: Calibrator, statistics: Statistics) -> Range:
    return statistics.low, statistics.high


def _moving_average(_: Calibrator, statistics: Statistics) -> Range:
    return statistics.average_low, statistics.average_high


def _percentile(calibrator: Calibrator, statistics: Statistics) -> Range:
    """The central share of the values; zero is kept inside, a side that has no values is not cut."""
    centres, counts = statistics.histogram()
    tail = (1.0 - calibrator.percentile / 100.0) / 2.0 * counts.sum()
    cumulative = np.cumsum(counts)
    low = centres[np.searchsorted(cumulative, tail, side="right")]
    high = centres[min(np.searchsorted(cumulative, counts.sum() - tail, side="left"), len(centres) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _mse(calibrator: Calibrator, statistics: Statistics) -> Range:
    """Coordinate descent over the two ends on a grid of shares of the extremes."""
    centres, counts = statistics.histogram()
    shares = np.concatenate([[1.0], np.linspace(0.98, 0.3, 35)])
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if calibrator.symmetric:
        bound = max(-low, high)
        errors = [_squared_error(centres, counts, -bound * s, bound * s, calibrator.levels) for s in shares]
        best = bound * float(shares[int(np.argmin(errors))])
        return -best, best
    best_low, best_high = low, high
    for _ in range(2):
        errors = [_squared_error(centres, counts, best_low, high * s, calibrator.levels) for s in shares]
        best_high = high * float(shares[int(np.argmin(errors))])
        errors = [_squared_error(centres, counts, low * s, best_high, calibrator.levels) for s in shares]
        best_low = low * float(shares[int(np.argmin(errors))])
    return best_low, best_high


def _squared_error(
    centres: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float, levels: int
) -> float:
    """Expected squared error, times the number of values. An exact zero costs nothing: it is representable."""
    step = (high - low) / (levels - 1)
    clipped = np.clip(centres, low, high) - centres
    rounded = (np.abs(centres) > 1e-30) * (step * step / 12.0)
    return float(np.dot(counts, np.where(clipped == 0, rounded, clipped * clipped)))


_ENTROPY_BINS = 2048


def _entropy(calibrator: Calibrator, statistics: Statistics) -> Range:
    """Divergence is evaluated for ranges that grow from the bin of zero outwards, both ends in proportion."""
    centres, counts = statistics.histogram()
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if calibrator.symmetric:
        low, high = min(low, -high), max(high, -low)
    if high <= low:
        return low, high
    dense, _ = np.histogram(centres, bins=_ENTROPY_BINS, range=(low, high), weights=counts)
    dense[np.clip(int(-low / (high - low) * _ENTROPY_BINS), 0, _ENTROPY_BINS - 1)] -= _zeros(centres, counts)
    quanta = calibrator.levels // 2
    best, best_share = np.inf, 1.0
    for share in np.linspace(0.1, 1.0, 91):
        divergence = _divergence(dense, low, high, share, quanta)
        if divergence < best:
            best, best_share = divergence, float(share)
    return low * best_share, high * best_share


def _zeros(centres: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    return float(counts[np.abs(centres) < 1e-30].sum())


def _divergence(dense: NDArray[np.float64], low: float, high: float, share: float, quanta: int) -> float:
    """KL(P || Q): P the histogram, its outliers folded into the ends, Q the same spread evenly over each quantum."""
    scale = _ENTROPY_BINS / (high - low)
    begin = int(np.floor((low * share - low) * scale))
    end = max(int(np.ceil((high * share - low) * scale)), begin + 1)
    inside = dense[begin:end]
    reference = inside.copy()
    reference[0] += dense[:begin].sum()
    reference[-1] += dense[end:].sum()
    if len(inside) < quanta:
        return np.inf
    owner = np.arange(len(inside)) * quanta // len(inside)
    occupied = inside > 0
    mass = np.bincount(owner, inside, minlength=quanta)
    cells = np.bincount(owner, occupied, minlength=quanta)
    spread = np.where(occupied, (mass / np.maximum(cells, 1))[owner], 0.0)
    total, total_spread = reference.sum(), spread.sum()
    if total <= 0 or total_spread <= 0:
        return np.inf
    p, q = reference / total, spread / total_spread
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


_METHODS: MappingProxyType[str, Callable[[Calibrator, Statistics], Range]] = MappingProxyType(
    {"minmax": _minmax, "moving-average": _moving_average, "percentile": _percentile, "entropy": _entropy, "mse": _mse}
)
METHODS = tuple(_METHODS)
