"""Codebooks, codes and sizes of one matrix.

Given the codes, what the outputs of the network lose is quadratic in the centroids (`importance`): with Z the indicator
of the codes of a row, s its scale and d how much it counts, the sum over rows of d (w - s Z^T t)^T H (w - s Z^T t) is
least where (sum of d s^2 Z H Z^T) t = sum of d s Z H w.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pumice.model import clone
from pumice.quantize.error_feedback import codes_with_feedback, output_error
from pumice.quantize.grids import CodebookGrid, in_blocks
from pumice.quantize.parameters import SMALLEST_SCALE
from pumice.quantize.storage import scale_levels
from pumice.quantize.weight_matrices import WeightMatrix, weight_matrices
from pumice.quantize.weight_only import Rounded
from pumice_quant_kmeans.clustering import clustered, exact_centroids
from pumice_quant_kmeans.importance import Importance, Importances, importances
from pumice_quant_kmeans.sharing import Way, allocated

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice.quantize.storage import Shelf
    from pumice_quant_kmeans import KMeans

Array = NDArray[Any]
STEPS_OF_INT8 = 127
REFITS = 2
"""Times that codes and centroids are fitted to each other."""


@attrs.frozen(eq=False)
class CodebookScheme:
    """What the knobs make of a matrix."""

    knobs: KMeans
    seed: int
    weighed: Mapping[str, Importance] = attrs.field(factory=dict)
    """What an error of each weight costs, by name of the matrix."""
    ways: Mapping[str, Way] = attrs.field(factory=dict)
    """What shares a codebook, and how large it is, by name of the matrix, where that is found by itself."""
    bits: list[tuple[float, float]] = attrs.field(factory=list)
    """Of every matrix that was stored: bits of its codes, packed and by Huffman's code."""

    @classmethod
    def informed(cls, knobs: KMeans, model: ir.Model, context: QuantizeContext) -> CodebookScheme:
        """With what errors of weights cost, and with what shares a codebook."""
        weighed, ways = context.recall(Importances), context.recall(_Ways)
        lifted = clone(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
        matrices = [m for m in weight_matrices(iter(lifted.graph)) if int(np.prod(m.shape)) >= knobs.smallest]
        if not weighed and not context.draft:
            weighed.update(importances(lifted, matrices, knobs, context))
        if knobs.codebook == "auto" and not ways:
            ways.update(allocated(matrices, knobs.centroids, knobs.table, knobs.overhead, context.seed, weighed))
        return cls(knobs, context.seed, weighed, ways)

    @property
    def signature(self) -> str:
        return str(self.knobs)

    @property
    def observes(self) -> bool:
        return self.knobs.rounding == "compensated" or self.knobs.weighting != "none" or self.knobs.refit

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        weights = matrix.rows()
        grid = self._stored(self.grid(matrix))
        codes = self._codes(weights, grid, second)
        if second is None or not self.knobs.refit or grid.table.shape[2] > 1:
            return Rounded(grid, codes)
        heed = self._heed(matrix)
        for _ in range(REFITS):
            better = self._stored(refitted(weights, codes, grid, second, heed))
            again = self._codes(weights, better, second)
            before, after = (weights - g.values(c) for g, c in ((grid, codes), (better, again)))
            if np.sum(heed * output_error(after, second)) >= np.sum(heed * output_error(before, second)):
                break
            grid, codes = better, again
        return Rounded(grid, codes)

    def _heed(self, matrix: WeightMatrix) -> Array:
        """How much each output of the layer does to those of the network, (groups, outputs)."""
        known = self.weighed.get(matrix.name)
        return np.ones(matrix.shape[:2]) if known is None else known.of_outputs

    def _codes(self, weights: Array, grid: CodebookGrid, second: NDArray[np.float64] | None) -> Array:
        if second is None or self.knobs.rounding == "nearest":
            return grid.codes(weights)
        return codes_with_feedback(weights, grid, second)

    # -- codebooks --

    def grid(self, matrix: WeightMatrix) -> CodebookGrid:
        """Scales and centroids; tables of embeddings are always shared, so that rows can be looked up one by one."""
        weights, found = matrix.rows(), self.ways.get(matrix.name)
        groups, outputs, k = weights.shape
        kind, entries = (found.codebook, found.entries) if found else (self.knobs.codebook, self.knobs.centroids)
        if matrix.op == "Gather" and kind != "tensor":
            kind = "scaled"
        block = min(self.knobs.group, k) if kind == "group" else k
        scale = np.ones((groups, outputs, 1)) if kind == "tensor" else _held(_peaks(weights), self.knobs.table)
        loud = self._loud(matrix, scale if kind == "scaled" else np.ones(1))
        normal = (weights / scale).astype(np.float32)
        if kind in ("tensor", "scaled"):
            points = normal.reshape(1, -1)
            table = self.centroids(points, None if loud is None else loud.reshape(1, -1), entries).reshape(1, 1, 1, -1)
        else:
            rows, heavy = _block_rows(normal, loud, block)
            table = self.centroids(rows, heavy, entries).reshape(groups, outputs, -1, entries)
        return CodebookGrid(table=table, scale=scale, block=block)

    def _loud(self, matrix: WeightMatrix, scale: Array) -> Array | None:
        """What the square of an error in units of the scale costs, (groups, outputs, k)."""
        known = self.weighed.get(matrix.name)
        return None if known is None else np.broadcast_to(known.of_weights * scale**2, matrix.shape)

    def centroids(self, points: Array, weights: Array | None, count: int) -> Array:
        """k-means of every row, ascending, (rows, count)."""
        if self.knobs.start == "exact":
            return exact_centroids(points, weights, count)
        return clustered(points, weights, count, self.seed, linear=self.knobs.start == "linear")

    def _stored(self, grid: CodebookGrid) -> CodebookGrid:
        """As the types that it is stored in will hold it; tables of integers give their step to the scales."""
        table = np.sort(grid.table, axis=3)
        if self.knobs.table != "int8":
            return attrs.evolve(grid, table=_as(self.knobs.table, table))
        step = float(np.abs(table).max()) / STEPS_OF_INT8 or 1.0
        return attrs.evolve(grid, table=np.rint(table / step), scale=_held(grid.scale * step, self.knobs.table))

    # -- the account --

    def shelve(self, rounded: Rounded, shelf: Shelf) -> None:
        assert isinstance(rounded.grid, CodebookGrid)
        counts = np.bincount(rounded.codes.ravel(), minlength=rounded.grid.entries)
        self.bits.append((float(counts.sum() * (4 if rounded.grid.entries <= 16 else 8)), huffman_bits(counts)))
        shelf.codebook(rounded.grid, rounded.codes, self.knobs.table)  # type: ignore[arg-type]

    def describe(self, rounded: Rounded) -> str:
        grid = rounded.grid
        assert isinstance(grid, CodebookGrid)
        if grid.table.size == grid.entries:
            single = np.all(grid.scale == grid.scale.flat[0])
            shared = "shared by all of them" if single else "shared by all, with a scale an output"
        else:
            shared = "an output" if grid.table.shape[2] == 1 else f"a group of {grid.block} inputs"
        return f"as codes into a table of {grid.entries} values {shared}"

    def notes(self) -> list[str]:
        packed, coded = (sum(column) / 8e3 for column in zip(*self.bits, strict=True)) if self.bits else (0.0, 0.0)
        if not packed:
            return []
        cost = "onnxruntime widens them once, when it loads the model: memory and speed are those of the original"
        return [f"the codes take {packed:.0f} kB packed and would take {coded:.0f} kB by Huffman's code; {cost}"]


class _Ways(dict[str, Way]):
    """Kept for further attempts."""


def _peaks(weights: Array) -> Array:
    """The largest magnitude of each row, as float32 holds it, (groups, outputs, 1); rows of zeros take the least."""
    peaks = np.abs(weights).max(axis=2, keepdims=True).astype(np.float32)
    usable = peaks >= SMALLEST_SCALE
    least = float(peaks.min(where=usable, initial=peaks.max() if usable.any() else 1.0))
    return np.where(usable, peaks.astype(np.float64), least)


def _held(scale: Array, table_type: str) -> Array:
    """Scales as they will be read."""
    if np.all(scale == scale.flat[0]):
        return _as("float32", scale)
    if table_type != "int8":
        return _as(table_type, scale)
    levels, unit = scale_levels(scale)
    return levels * unit.astype(np.float64)


def _as(table_type: str, numbers: Array) -> Array:
    import ml_dtypes

    dtype = np.float32 if table_type == "float32" else ml_dtypes.bfloat16
    return np.asarray(numbers.astype(dtype), np.float64)


def _block_rows(normal: Array, loud: Array | None, block: int) -> tuple[Array, Array | None]:
    """Blocks as rows; what fills the last block up counts nothing."""
    rows = in_blocks(normal, block).reshape(-1, block)
    missing = -normal.shape[2] % block
    if loud is None and not missing:
        return rows, None
    heavy = np.ones(normal.shape) if loud is None else loud
    return rows, np.pad(heavy, ((0, 0), (0, 0), (0, missing))).reshape(-1, block)


def refitted(
    weights: Array, codes: Array, grid: CodebookGrid, second: NDArray[np.float64], heed: Array
) -> CodebookGrid:
    """The centroids with which these codes cost least, where errors of an output cost `heed`, (groups, outputs).

    Those without members stay.
    """
    entries, (groups, outputs, _) = grid.entries, weights.shape
    shared = grid.table.size == entries
    table = np.broadcast_to(grid.table, (groups, outputs, 1, entries)).copy()
    left, right = np.zeros((entries, entries)), np.zeros(entries)
    for group, output in np.ndindex(groups, outputs):
        members, scale = codes[group, output][None] == np.arange(entries)[:, None], float(grid.scale[group, output, 0])
        indicator = members.astype(np.float64)
        each = indicator @ second[group]
        matrix, vector = scale**2 * (each @ indicator.T), scale * (each @ weights[group, output])
        if shared:
            left, right = left + heed[group, output] * matrix, right + heed[group, output] * vector
        else:
            table[group, output, 0] = _solved(matrix, vector, table[group, output, 0])
    return attrs.evolve(grid, table=_solved(left, right, grid.table) if shared else table)


def _solved(matrix: Array, vector: Array, table: Array) -> Array:
    used = np.diag(matrix) > 0
    found = table.reshape(-1).astype(np.float64).copy()
    if used.any():
        ridge = 1e-6 * float(np.trace(matrix)) / used.sum() * np.eye(int(used.sum()))
        pull = ridge @ found[used]  # towards where they are
        found[used] = np.linalg.solve(matrix[np.ix_(used, used)] + ridge, vector[used] + pull)
    return found.reshape(table.shape)


def huffman_bits(counts: Array) -> float:
    """Bits of all codes in the best prefix code: the sum of the counts of its inner nodes."""
    import heapq

    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return float(total)
