"""k-means on the line, for many rows at once.

    min over t of sum_i h_i min_j (x_i - t_j)^2

Numbers of a row are sorted once; those of a long row fall into so many even bins that it does not matter where in a bin
they lie. Clusters are then intervals between the middles of neighbouring centroids, and with prefix sums of h and h x a
step of Lloyd's algorithm costs a binary search a centroid, however long the row is. A centroid that nothing is nearest
to is put where it helps most: in the cluster that loses most, which is split at its mean.
The exact optimum is found by dynamic programming,

    D[j, i] = min over m of D[j - 1, m] + cost(m, i),   cost(m, i) = sum h x^2 - (sum h x)^2 / sum h  over m <= . < i,

whose minimiser m grows with i, so that halving the range of i costs T n log n (Wu, 1991; Wang and Song, 2011).
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.cores import usable_cores

Array = NDArray[Any]
SMALLEST = 1e-300
STEPS = 60
"""Of Lloyd's algorithm at most; it stops when nothing moves."""
MOVED = 1e-4
"""What counts as moved, as a share of a row's range; rows in which nothing does are done."""
BLOCK = 256
"""Rows that are clustered together; fixed, so that results do not depend on the processors."""
RANKS = 256
"""Numbers of a row that k-means++ draws from, of equal weight between them."""
BINS = 1 << 16
"""Of rows with more numbers than that."""


@attrs.frozen(eq=False)
class Rows:
    """Sorted numbers with their prefix sums; `points` is (rows, n), sums are (rows, n + 1)."""

    points: Array
    weight: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, points: Array, weights: Array | None = None) -> Rows:
        """Rows of numbers, (rows, n), and how much each counts, of the same shape or None for all alike."""
        if points.shape[1] > BINS:
            return cls._in_bins(points, weights)
        if weights is None:
            ordered = np.sort(points, axis=1)
            counts = np.broadcast_to(np.arange(points.shape[1] + 1.0), (len(points), points.shape[1] + 1))
            return cls(ordered, counts, _sums(ordered), _sums(np.square(ordered)))
        order = np.argsort(points, axis=1)
        ordered, heavy = np.take_along_axis(points, order, 1), np.take_along_axis(weights, order, 1)
        return cls(ordered, _sums(heavy), _sums(heavy * ordered), _sums(heavy * np.square(ordered)))

    @classmethod
    def _in_bins(cls, points: Array, weights: Array | None) -> Rows:
        """The means of what falls into each bin; the middles of those that stay empty."""
        low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
        step = np.where(high > low, (high - low) / np.float32(BINS), np.float32(1.0))
        means, *sums = (np.empty((len(points), BINS)) for _ in range(4))
        for row, numbers in enumerate(points):
            bins = np.minimum((numbers - low[row]) / step[row], BINS - 1).astype(np.int32)
            heavy = None if weights is None else weights[row]
            each = [heavy, *(numbers**power * (1.0 if heavy is None else heavy) for power in (1, 2))]
            for total, summand in zip(sums, each, strict=True):
                total[row] = np.bincount(bins, weights=summand, minlength=BINS)
            middles = low[row] + (np.arange(BINS) + 0.5) * step[row]
            means[row] = np.where(sums[0][row] > 0, sums[1][row] / np.maximum(sums[0][row], SMALLEST), middles)
        return cls(means, *map(_sums, sums))

    def between(self, sums: Array, which: Array, edges: Array) -> Array:
        """Sums of some rows over the intervals between neighbouring positions, (len(which), T + 1)."""
        return np.diff(sums[which[:, None], edges], axis=1)


def _sums(numbers: Array) -> Array:
    sums = np.zeros((len(numbers), numbers.shape[1] + 1))
    np.cumsum(numbers, axis=1, dtype=np.float64, out=sums[:, 1:])
    return sums


def clustered(points: Array, weights: Array | None, entries: int, seed: int, *, linear: bool = False) -> Array:
    """Centroids of each row by Lloyd's algorithm, ascending, (rows, entries): blocks of rows on all processors."""

    def block(number: int) -> Array:
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        rows = Rows.of(points[part], None if weights is None else weights[part])
        return lloyd(rows, linear_start(rows, entries) if linear else plus_plus_start(rows, entries, [seed, number]))

    with ThreadPoolExecutor(len(usable_cores())) as pool:  # NumPy sorts and sums without the interpreter's lock
        return np.concatenate(list(pool.map(block, range(-(-len(points) // BLOCK)))))


# --- starts -----------------------------------------------------------------------------------------------------------


def linear_start(rows: Rows, entries: int) -> Array:
    """Evenly spaced from the least to the greatest number of each row, (rows, entries)."""
    low, high = rows.points[:, :1].astype(np.float64), rows.points[:, -1:].astype(np.float64)
    return np.asarray(low + (high - low) * ((np.arange(entries) + 0.5) / entries))


def plus_plus_start(rows: Rows, entries: int, seed: int | list[int]) -> Array:
    """Drawn in turn, with odds that grow with the squared distance from those there are, (rows, entries)."""
    random = np.random.default_rng(seed)
    count = min(RANKS, rows.points.shape[1])
    shares = rows.weight[:, -1:] * (np.arange(count) + 0.5) / count
    ranks = _edges(rows.weight[:, 1:], np.arange(len(rows.points)), shares)[:, 1:-1]
    among = np.take_along_axis(rows.points, np.minimum(ranks, rows.points.shape[1] - 1), 1).astype(np.float64)
    every = np.arange(len(among))
    chosen = [among[every, random.integers(0, among.shape[1], len(among))]]
    distance = np.full(among.shape, np.inf)
    for _ in range(entries - 1):
        distance = np.minimum(distance, (among - chosen[-1][:, None]) ** 2)
        odds = np.cumsum(distance, axis=1)
        drawn = (odds < random.random((len(among), 1)) * odds[:, -1:]).sum(axis=1)
        chosen.append(among[every, np.minimum(drawn, among.shape[1] - 1)])
    return np.sort(np.stack(chosen, axis=1), axis=1)


# --- Lloyd ------------------------------------------------------------------------------------------------------------


def lloyd(rows: Rows, centroids: Array) -> Array:
    """Centroids from which no step moves any, ascending, (rows, T)."""
    centroids, going = centroids.copy(), np.arange(len(centroids))
    slack = MOVED * (rows.points[:, -1] - rows.points[:, 0]).astype(np.float64)
    for _ in range(STEPS):
        moved = _step(rows, going, centroids[going])
        moves = np.abs(moved - centroids[going]).max(axis=1) > slack[going]
        centroids[going] = moved
        going = going[moves]
        if not len(going):
            break
    return centroids


def _step(rows: Rows, which: Array, centroids: Array) -> Array:
    """Of some rows: every centroid becomes the mean of what is nearest to it."""
    edges = _edges(rows.points, which, (centroids[:, 1:] + centroids[:, :-1]) / 2.0)
    weight, first = (rows.between(sums, which, edges) for sums in (rows.weight, rows.first))
    empty = weight <= 0
    means = np.where(empty, centroids, first / np.where(empty, 1.0, weight))
    if empty.any():
        means = _reseeded(rows, which, edges, means, empty)
    return means


def _edges(points: Array, which: Array, middles: Array) -> Array:
    """Where each middle falls among the sorted numbers, with both ends, (rows, T + 1): binary search in all rows."""
    count = points.shape[1]
    low, high = np.zeros(middles.shape, np.int64), np.full(middles.shape, count, np.int64)
    for _ in range(count.bit_length()):
        probe = (low + high) >> 1
        beyond = points[which[:, None], np.minimum(probe, count - 1)] <= middles
        open_ = low < high
        low, high = np.where(open_ & beyond, probe + 1, low), np.where(open_ & ~beyond, probe, high)
    ends = np.zeros((len(middles), 1), np.int64)
    return np.concatenate([ends, low, ends + count], axis=1)


def _reseeded(rows: Rows, which: Array, edges: Array, means: Array, empty: Array) -> Array:
    """Empty clusters take the upper half of those that lose most."""
    weight, first, second = (rows.between(sums, which, edges) for sums in (rows.weight, rows.first, rows.second))
    lost = second - first**2 / np.where(weight > 0, weight, 1.0)
    moved = means.copy()
    for row in np.flatnonzero(empty.any(axis=1)):
        points, worst = rows.points[which[row]], np.argsort(-lost[row], kind="stable")
        for hole, source in zip(np.flatnonzero(empty[row]), worst, strict=False):
            start, stop = edges[row, source], edges[row, source + 1]
            above = start + np.searchsorted(points[start:stop], means[row, source], side="right")
            if start < above < stop:
                moved[row, hole] = points[above:stop].mean()
    return np.sort(moved, axis=1)


# --- the optimum ------------------------------------------------------------------------------------------------------


def exact_centroids(points: Array, weights: Array | None, entries: int) -> Array:
    """The best centroids of each row, ascending, (rows, entries)."""
    ones = np.ones(points.shape[1])
    return np.stack(
        [
            _optimum(row.astype(np.float64), ones if weights is None else weights[number], entries)
            for number, row in enumerate(points)
        ]
    )


def _optimum(row: Array, heavy: Array, entries: int) -> Array:
    distinct, position = np.unique(row, return_inverse=True)
    weight = np.bincount(position, weights=heavy)
    distinct, weight = distinct[weight > 0], weight[weight > 0]
    if len(distinct) <= entries:
        return np.pad(distinct, (0, entries - len(distinct)), mode="edge") if len(distinct) else np.zeros(entries)
    centred = distinct - np.average(distinct, weights=weight)  # squares of large numbers would cancel
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (weight, weight * centred, weight * centred**2)]
    best, cuts = _costs(sums, np.zeros(len(distinct), np.int64), np.arange(1, len(distinct) + 1)), []
    best = np.concatenate([[0.0], best])
    for _ in range(entries - 1):
        best, cut = _one_more(best, sums)
        cuts.append(cut)
    edges = [len(distinct)]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges = [0, *reversed(edges)]
    return np.array(
        [
            np.average(distinct[a:b], weights=weight[a:b]) if b > a else distinct[min(a, len(distinct) - 1)]
            for a, b in itertools.pairwise(edges)
        ]
    )


def _costs(sums: list[Array], start: Array, stop: Array) -> Array:
    """What the intervals lose as one cluster each; 0 for empty ones."""
    weight, first, second = (part[stop] - part[start] for part in sums)
    return np.where(weight > 0, second - first**2 / np.where(weight > 0, weight, 1.0), 0.0)


def _one_more(best: Array, sums: list[Array]) -> tuple[Array, Array]:
    """D and its minimisers with one more cluster, for the first 0 to n numbers; all middles of a level at once."""
    count = len(best) - 1
    found, cut = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
    ends = np.array([[0, count]])
    lows, highs = np.array([0]), np.array([count])
    while len(ends):
        middles = (ends[:, 0] + ends[:, 1]) // 2
        widths = np.minimum(highs, middles) - lows + 1
        begins = np.concatenate([[0], np.cumsum(widths)[:-1]])
        candidates = np.arange(widths.sum()) - np.repeat(begins - lows, widths)
        totals = best[candidates] + _costs(sums, candidates, np.repeat(middles, widths))
        found[middles] = np.minimum.reduceat(totals, begins)
        hit = np.flatnonzero(totals == np.repeat(found[middles], widths))
        owners = np.repeat(np.arange(len(middles)), widths)[hit]
        cut[middles[owners[::-1]]] = candidates[hit[::-1]]  # the first of equals is written last
        left, right = ends[:, 0] < middles, middles < ends[:, 1]
        chosen = cut[middles]
        below = np.stack([ends[left, 0], middles[left] - 1], axis=1)
        above = np.stack([middles[right] + 1, ends[right, 1]], axis=1)
        ends = np.concatenate([below, above])
        lows = np.concatenate([lows[left], chosen[right]])
        highs = np.concatenate([chosen[left], highs[right]])
    return found, cut
