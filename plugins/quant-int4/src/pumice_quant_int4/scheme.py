"""Scales, zero points and integers of one matrix.

clipped   min over c of sum h (w - w'(c))^2, where w'(c) is rounded to the grid that covers c times the range of the
          block and h is the mean square of what multiplies each weight (Lin et al., AWQ, MLSys 2024, section 3)
hqq       min over s, z of sum |w - w'|^p with p < 1, by half-quadratic splitting (Badri and Shaji, 2023):
          e <- shrink(w - w', beta), then s and z fit w - e by least squares, with beta growing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.quantize.error_feedback import codes_with_feedback
from pumice.quantize.grids import AffineGrid, in_blocks
from pumice.quantize.weight_only import Rounded

if TYPE_CHECKING:
    from pumice.quantize.storage import Shelf
    from pumice.quantize.weight_matrices import WeightMatrix
    from pumice_quant_int4 import Int4

Array = NDArray[Any]
SHARES = np.linspace(1.0, 0.5, 21)
"""Shares of a block's range that are tried."""
POWER, STEPS, BETA, GROWTH = 0.7, 20, 10.0, 1.05
"""The exponent p, and how the splitting goes on (the authors' figures)."""


@attrs.frozen(eq=False)
class AffineScheme:
    """What the knobs make of a matrix."""

    knobs: Int4

    @property
    def signature(self) -> str:
        return str(self.knobs)

    @property
    def observes(self) -> bool:
        return self.knobs.rounding == "compensated" or self.knobs.scales == "clipped"

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        weights = matrix.rows()
        grid = self.grid(weights, second, self.block_of(matrix))
        if second is None or self.knobs.rounding == "nearest":
            return Rounded(grid, grid.codes(weights))
        return Rounded(grid, codes_with_feedback(weights, grid, second))

    def block_of(self, matrix: WeightMatrix) -> int:
        """Rows of a table have one scale: only the rows that are used are widened."""
        k = matrix.shape[2]
        return k if matrix.op == "Gather" or not self.knobs.block else min(self.knobs.block, k)

    def grid(self, weights: Array, second: NDArray[np.float64] | None, block: int) -> AffineGrid:
        """Scales and zero points; `second` is (groups, k, k)."""
        first = self._covering(weights, block)
        if self.knobs.scales == "hqq":
            return half_quadratic(weights, first)
        if self.knobs.scales == "minmax":
            return first
        loudness = np.ones((1, 1, 1)) if second is None else np.einsum("gkk->gk", second)[:, None, :]
        return self._clipped(weights, np.broadcast_to(loudness, weights.shape), block)

    def _covering(self, weights: Array, block: int, share: float = 1.0) -> AffineGrid:
        knobs = self.knobs
        return AffineGrid.covering(weights, bits=knobs.bits, block=block, symmetric=knobs.symmetric, share=share)

    def _clipped(self, weights: Array, loudness: Array, block: int) -> AffineGrid:
        best = self._covering(weights, block)
        least = np.full(best.scale.shape, np.inf)
        for share in SHARES:
            grid = self._covering(weights, block, float(share))
            lost = _block_sums(loudness * (weights - grid.values(grid.codes(weights))) ** 2, block)
            better = lost < least
            least = np.where(better, lost, least)
            scale, zero = np.where(better, grid.scale, best.scale), np.where(better, grid.zero, best.zero)
            best = attrs.evolve(best, scale=scale, zero=zero)
        return best

    def shelve(self, rounded: Rounded, shelf: Shelf) -> None:
        assert isinstance(rounded.grid, AffineGrid)
        shelf.affine(rounded.grid, rounded.codes, self.knobs.form)  # type: ignore[arg-type]

    def describe(self, rounded: Rounded) -> str:
        assert isinstance(rounded.grid, AffineGrid)
        blocks = rounded.grid.scale.shape[2]
        each = f"in blocks of {rounded.grid.block}" if blocks > 1 else "with one scale an output"
        return f"as {self.knobs.bits}-bit integers {each}"


def half_quadratic(weights: Array, grid: AffineGrid) -> AffineGrid:
    """The grid with scales and zero points that lose least in the l_p norm, block by block."""
    best, least, beta = grid, _distance(weights, grid), BETA
    for _ in range(STEPS):
        codes = grid.codes(weights)
        lost = weights - grid.values(codes)
        outliers = np.sign(lost) * np.maximum(np.abs(lost) - np.abs(lost).clip(1e-8) ** (POWER - 1) / beta, 0.0)
        grid = _fitted(weights - outliers, codes, grid)
        distance = _distance(weights, grid)
        better = distance < least
        least = np.where(better, distance, least)
        scale, zero = np.where(better, grid.scale, best.scale), np.where(better, grid.zero, best.zero)
        best = attrs.evolve(best, scale=scale, zero=zero)
        beta *= GROWTH
    return best


def _fitted(weights: Array, codes: Array, grid: AffineGrid) -> AffineGrid:
    """Scale and zero point that fit `weights` best, given the codes; symmetric grids keep their zero."""
    levels = codes - grid.zero.repeat(grid.block, axis=2)[:, :, : codes.shape[2]].astype(np.float64)
    squares, products = _block_sums(levels**2, grid.block), _block_sums(levels * weights, grid.block)
    scale = np.where((squares > 0) & (products > 0), products / np.where(squares > 0, squares, 1.0), grid.scale)
    scale = scale.astype(np.float32).astype(np.float64)
    if grid.signed:
        return attrs.evolve(grid, scale=scale)
    every = scale.repeat(grid.block, axis=2)[:, :, : codes.shape[2]]
    counts = _block_sums(np.ones(codes.shape), grid.block)
    zero = np.rint(_block_sums(codes - weights / every, grid.block) / counts)
    return attrs.evolve(grid, scale=scale, zero=np.clip(zero, grid.low, grid.high).astype(np.int32))


def _distance(weights: Array, grid: AffineGrid) -> Array:
    return _block_sums(np.abs(weights - grid.values(grid.codes(weights))) ** POWER, grid.block)


def _block_sums(numbers: Array, block: int) -> Array:
    """(groups, outputs, k) summed over each block."""
    missing = -numbers.shape[2] % block
    return np.asarray(in_blocks(np.pad(numbers, ((0, 0), (0, 0), (0, missing))), block).sum(axis=3))
