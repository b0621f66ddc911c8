"""What shares a codebook, matrix by matrix: as little as a budget of bytes allows, and there where it helps most.

Tables and scales are bytes on top of the codes, and a table of 16 values is as large as the codes of an output with 32
inputs. A matrix has these ways to be stored: one table for all of it, with or without a scale an output, of as many
values as asked for or, with codes of 8 bits, of 256; or a table an output. (256 values are for the few matrices that
four bits spoil, and for those with so few inputs that a table an output would be larger still.) Each way has its bytes,
and its noise: what the nearest values do to the outputs of the network (`importance`). What is chosen minimises the
noise of all matrices under the budget: from the cheapest way of each, the step that takes off most noise a byte is
taken in turn, along the lower convex hull of every matrix (Shoham and Gersho, 1988). Tables for 4, 16 or 64
neighbouring outputs hardly ever lie on a hull: neighbours have nothing in common but what their scales already say.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.quantize.weight_matrices import WeightMatrix
from pumice_quant_kmeans.clustering import clustered
from pumice_quant_kmeans.importance import Importance, relative_to_weights

Array = NDArray[Any]
NARROW, WIDE = 16, 256
"""The most values that codes of 4 and of 8 bits choose among."""
SAMPLE = 1 << 15
"""Weights of a matrix that its noise is estimated from."""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Of a table's entry and of a scale, by their type."""
SHAPE_BYTES = 48
"""Of the shapes that lay codes out by table, and back."""
UNIT_BYTES = 4
"""Of the number that makes small integers weights."""


@attrs.frozen
class Way:
    """One way to store a matrix."""

    codebook: str
    """What shares it: `tensor`, `scaled` (the same, with a scale an output) or `channel`."""
    entries: int
    nbytes: int
    """On top of codes of the usual width."""
    noise: float


def allocated(
    matrices: Sequence[WeightMatrix],
    entries: int,
    table: str,
    overhead: float,
    seed: int,
    weighed: Mapping[str, Importance],
) -> dict[str, Way]:
    """How every matrix is stored, by its name.

    Args:
        matrices: that are stored as codes.
        entries: of a table.
        table: type of its entries and of the scales.
        overhead: bytes of all tables, scales and wider codes at most, as a share of those of codes that choose among
            `entries` values; the cheapest way is taken in any case.
        seed: of k-means.
        weighed: what an error costs, by name of the matrix.
    """
    hulls = {m.name: _hull(_ways(m, entries, BYTES[table], seed, weighed.get(m.name))) for m in matrices}
    codes = sum(int(np.prod(m.shape)) for m in matrices) * (0.5 if entries <= 16 else 1.0)
    left = overhead * codes - sum(hull[0].nbytes for hull in hulls.values())
    at = dict.fromkeys(hulls, 0)
    steps = [(-_slope(*hull[:2]), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        before, after, *further = hulls[name][at[name] :]
        if after.nbytes - before.nbytes > left:
            continue
        left -= after.nbytes - before.nbytes
        at[name] += 1
        if further:
            heapq.heappush(steps, (-_slope(after, further[0]), name))
    return {name: hull[at[name]] for name, hull in hulls.items()}


def _slope(before: Way, after: Way) -> float:
    """Noise that goes, a byte."""
    return (before.noise - after.noise) / (after.nbytes - before.nbytes)


def _hull(ways: Sequence[Way]) -> list[Way]:
    """Those on the lower convex hull of noise over bytes, from the cheapest to the most exact."""
    hull: list[Way] = []
    for way in sorted(ways, key=lambda way: way.nbytes):
        if hull and way.noise >= hull[-1].noise:
            continue
        while len(hull) > 1 and _slope(*hull[-2:]) <= _slope(hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _ways(matrix: WeightMatrix, entries: int, number: int, seed: int, weighed: Importance | None) -> list[Way]:
    """Look-ups of single rows share their table."""
    rows = matrix.rows().reshape(-1, matrix.shape[2])
    loud = np.broadcast_to((weighed or relative_to_weights(matrix)).of_weights, matrix.shape).reshape(rows.shape)
    some = slice(None, None, max(1, rows.size // SAMPLE))
    sampled = rows.size / rows[some].size
    nbytes = {("tensor", entries): entries * number, ("scaled", entries): (entries + len(rows)) * number}
    if matrix.op != "Gather":
        nbytes["channel", entries] = (entries + 1) * len(rows) * number + SHAPE_BYTES
    if entries <= NARROW:
        wider = rows.size // 2 + WIDE * number
        nbytes |= {("tensor", WIDE): wider, ("scaled", WIDE): wider + len(rows) * number}
    return [
        Way(what, count, UNIT_BYTES + size, sampled * _noise(rows[some], loud[some], what, count, seed))
        for (what, count), size in nbytes.items()
    ]


def _noise(rows: Array, loud: Array, codebook: str, entries: int, seed: int) -> float:
    """Of the nearest values: the sum of loud (w - q)^2."""
    scale = np.ones((len(rows), 1)) if codebook == "tensor" else np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    shape = rows.shape if codebook == "channel" else (1, -1)
    sets, heavy = (rows / scale).reshape(shape), (loud * scale**2).reshape(shape)
    tables = clustered(sets, heavy, entries, seed)
    middles = (tables[:, 1:] + tables[:, :-1]) / 2.0
    codes = np.stack([np.searchsorted(middle, row) for middle, row in zip(middles, sets, strict=True)])
    return float(np.sum(heavy * (sets - np.take_along_axis(tables, codes, axis=1)) ** 2))
