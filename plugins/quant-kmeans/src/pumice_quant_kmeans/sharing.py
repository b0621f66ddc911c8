"""What shares a codebook, matrix by matrix: as little as a budget of bytes allows, and there where it helps most.

Tables and scales are bytes on top of the codes, and a table of 16 values is as large as the codes of an output with 32
inputs. A matrix has three ways to be stored: one table for all of it, one with a scale an output, a table an output.
Each has its bytes and its noise, the mean over the outputs of |w - q|^2 / |w|^2. What is chosen minimises the noise of
all matrices under the budget: from the cheapest way of each, the step that takes off most noise a byte is taken in
turn, along the lower convex hull of every matrix (Shoham and Gersho, 1988). Tables for 4, 16 or 64 neighbouring outputs
hardly ever lie on a hull: neighbours have nothing in common but what their scales already say.
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
    nbytes: int
    noise: float


def allocated(
    matrices: Sequence[WeightMatrix], entries: int, table: str, overhead: float, seed: int
) -> Mapping[str, str]:
    """What shares a codebook in every matrix, by its name: `tensor`, `scaled` or `channel`.

    Args:
        matrices: that are stored as codes.
        entries: of a table.
        table: type of its entries and of the scales.
        overhead: bytes of all tables and scales at most, as a share of those of all codes; the cheapest way is taken
            in any case.
        seed: of k-means.
    """
    hulls = {m.name: _hull(_ways(m, entries, BYTES[table], seed)) for m in matrices}
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
    return {name: hull[at[name]].codebook for name, hull in hulls.items()}


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


def _ways(matrix: WeightMatrix, entries: int, number: int, seed: int) -> list[Way]:
    """Look-ups of single rows share their table."""
    rows = matrix.rows().reshape(-1, matrix.shape[2])
    some = rows[:: max(1, rows.size // SAMPLE)]
    nbytes = {"tensor": entries * number, "scaled": (entries + len(rows)) * number}
    if matrix.op != "Gather":
        nbytes["channel"] = (entries + 1) * len(rows) * number + SHAPE_BYTES
    return [Way(what, UNIT_BYTES + size, _noise(some, what, entries, seed)) for what, size in nbytes.items()]


def _noise(rows: NDArray[Any], codebook: str, entries: int, seed: int) -> float:
    """Of the nearest values, relative to each row's weights, on average; a row that is lost counts 1."""
    power = np.square(rows).sum(axis=1)
    scale = np.ones((len(rows), 1)) if codebook == "tensor" else np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    sets = rows / scale if codebook == "channel" else (rows / scale).reshape(1, -1)
    tables = clustered(sets, None, entries, seed)
    middles = (tables[:, 1:] + tables[:, :-1]) / 2.0
    codes = np.stack([np.searchsorted(middle, row) for middle, row in zip(middles, sets, strict=True)])
    lost = (sets - np.take_along_axis(tables, codes, axis=1)).reshape(rows.shape) * scale
    return float(np.mean(np.minimum(np.square(lost).sum(axis=1) / np.where(power > 0, power, 1.0), 1.0)))
