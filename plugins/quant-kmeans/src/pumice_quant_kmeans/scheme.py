"""Codebooks, codes and sizes of one matrix.

Given the codes, the layer's output error of a row is quadratic in its centroids: with Z the indicator of the codes and
S = diag(s), Q = t Z S, and tr((W - Q) H (W - Q)^T) is least where (sum over rows of s^2 Z H Z^T) t = sum of s Z H w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pumice.model import clone
from pumice.quantize.error_feedback import codes_with_feedback, output_error
from pumice.quantize.grids import CodebookGrid, in_blocks
from pumice.quantize.output_gradients import output_gradients
from pumice.quantize.parameters import SMALLEST_SCALE
from pumice.quantize.storage import scale_levels
from pumice.quantize.weight_matrices import WeightMatrix, moved, weight_matrices
from pumice.quantize.weight_only import Rounded
from pumice_quant_kmeans.clustering import clustered, exact_centroids
from pumice_quant_kmeans.sharing import allocated

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice.quantize.storage import Shelf
    from pumice_quant_kmeans import KMeans

Array = NDArray[Any]
STEPS_OF_INT8 = 127
FLOOR = 0.01
"""Least that a weight counts by its Fisher information, as a share of the mean weight."""
REFITS = 2
"""Times that codes and centroids are fitted to each other."""


@attrs.frozen(eq=False)
class CodebookScheme:
    """What the knobs make of a matrix."""

    knobs: KMeans
    seed: int
    fisher: Mapping[str, Array] = attrs.field(factory=dict)
    """How much each weight does to the outputs, by name of the matrix."""
    codebooks: Mapping[str, str] = attrs.field(factory=dict)
    """What shares a codebook, by name of the matrix, where it is found by itself."""
    bits: list[tuple[float, float]] = attrs.field(factory=list)
    """Of every matrix that was stored: bits of its codes, packed and by Huffman's code."""

    @classmethod
    def informed(cls, knobs: KMeans, model: ir.Model, context: QuantizeContext) -> CodebookScheme:
        """With the Fisher information, if it is asked for, and with what shares a codebook."""
        fisher, codebooks = context.recall(_Fisher), context.recall(_Codebooks)
        lifted = clone(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
        matrices = [m for m in weight_matrices(iter(lifted.graph)) if int(np.prod(m.shape)) >= knobs.smallest]
        if knobs.weighting == "fisher" and not context.draft and not fisher:
            fisher.update(_fisher(lifted, matrices, context))
        if knobs.codebook == "auto" and not codebooks:
            codebooks.update(allocated(matrices, knobs.centroids, knobs.table, knobs.overhead, context.seed))
        return cls(knobs, context.seed, fisher, codebooks)

    @property
    def signature(self) -> str:
        return str(self.knobs)

    @property
    def observes(self) -> bool:
        return self.knobs.rounding == "compensated" or self.knobs.weighting == "activation" or self.knobs.refit

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        weights = matrix.rows()
        grid = self._stored(self.grid(matrix, weights, second))
        codes = self._codes(weights, grid, second)
        for _ in range(REFITS if self.knobs.refit and second is not None and grid.table.shape[2] == 1 else 0):
            assert second is not None
            better = self._stored(refitted(weights, codes, grid, second))
            again = self._codes(weights, better, second)
            errors = [output_error(weights - g.values(c), second).sum() for g, c in ((grid, codes), (better, again))]
            if errors[1] >= errors[0]:
                break
            grid, codes = better, again
        return Rounded(grid, codes)

    def _codes(self, weights: Array, grid: CodebookGrid, second: NDArray[np.float64] | None) -> Array:
        if second is None or self.knobs.rounding == "nearest":
            return grid.codes(weights)
        return codes_with_feedback(weights, grid, second)

    # -- codebooks --

    def grid(self, matrix: WeightMatrix, weights: Array, second: NDArray[np.float64] | None) -> CodebookGrid:
        """Scales and centroids; tables of embeddings are always shared, so that rows can be looked up one by one."""
        groups, outputs, k = weights.shape
        kind = self.codebooks.get(matrix.name, self.knobs.codebook)
        if matrix.op == "Gather" and kind != "tensor":
            kind = "scaled"
        block = min(self.knobs.group, k) if kind == "group" else k
        scale = np.ones((groups, outputs, 1)) if kind == "tensor" else _held(_peaks(weights), self.knobs.table)
        loud = None
        if matrix.name in self.fisher:
            loud = self.fisher[matrix.name]
        elif second is not None and self.knobs.weighting == "activation":
            loud = np.broadcast_to(np.einsum("gkk->gk", second)[:, None, :], weights.shape)
        if loud is not None and kind == "scaled":
            loud = loud * scale**2
        normal = (weights / scale).astype(np.float32)
        if kind in ("tensor", "scaled"):
            points = normal.reshape(1, -1)
            table = self.centroids(points, None if loud is None else loud.reshape(1, -1)).reshape(1, 1, 1, -1)
        else:
            rows, heavy = _block_rows(normal, loud, block)
            table = self.centroids(rows, heavy).reshape(groups, outputs, -1, self.knobs.centroids)
        return CodebookGrid(table=table, scale=scale, block=block)

    def centroids(self, points: Array, weights: Array | None) -> Array:
        """k-means of every row, ascending, (rows, centroids)."""
        count = self.knobs.centroids
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


class _Fisher(dict[str, Array]):
    """Kept for further attempts."""


class _Codebooks(dict[str, str]):
    """The same."""


def _fisher(model: ir.Model, matrices: Sequence[WeightMatrix], context: QuantizeContext) -> dict[str, Array]:
    """E g^2 of every weight, (groups, outputs, k), by name of its matrix."""
    sums = {m.name: np.zeros(m.shape) for m in matrices}
    for gradients in output_gradients(model, [str(m.value.name) for m in matrices], context):
        for matrix in matrices:
            gradient = gradients[str(matrix.value.name)].astype(np.float64)
            sums[matrix.name] += moved(gradient, matrix.to_rows).reshape(matrix.shape) ** 2
    return {name: total + FLOOR * total.mean() for name, total in sums.items() if total.any()}


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


def refitted(weights: Array, codes: Array, grid: CodebookGrid, second: NDArray[np.float64]) -> CodebookGrid:
    """The centroids with which these codes disturb the layer's output least; those without members stay."""
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
            left, right = left + matrix, right + vector
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
