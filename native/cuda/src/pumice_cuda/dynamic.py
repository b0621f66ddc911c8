"""DynamicQuantizeLinear together with what makes the values: their range is noted as they are made.

All arrays are CuPy's, of float32. Each function returns (q, scale, zero): uint8 levels, and arrays without axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import aligned, contiguous

if TYPE_CHECKING:
    import cupy

Quantized = tuple["cupy.ndarray", "cupy.ndarray", "cupy.ndarray"]
THREADS, WIDE, LOADS = 256, 4, 4
"""Of a block of csrc/dynamic.cu, elements of an access and accesses of a thread at most."""
FEW, FEWER = 2304, 128
"""Ranges that every block of the quantization can read, and to how many more of them are brought down."""
RESIDENT = 4
"""Blocks of a multiprocessor that walk over elements."""
BLOCK, LARGE = 128, 512
"""Threads of a block that has rows, and of one where rows are many: few blocks note few ranges."""
WARP = 32
ROW_TEAMS, KEPT = (WARP, 128, 256, 512, 1024), 8
"""Threads that have a row, and accesses of a row that each of them keeps at most."""
MOST = 1 << 32
"""Elements, whose columns are counted in 32 bits."""


def layer_norm(x: cupy.ndarray, scale: cupy.ndarray, bias: cupy.ndarray | None, epsilon: float) -> Quantized:
    """Of x normalised over its last axes, as many as `scale` (and `bias`) have elements; see `takes`."""
    import cupy

    x, scale, bias = contiguous(x), contiguous(scale), None if bias is None else contiguous(bias)
    columns = scale.size
    rows = x.size // columns
    many = rows >= LARGE // WARP * device.gpu().multiprocessors
    threads, vectors = _row_team(columns, many=many)
    small = max(threads, BLOCK)
    large = LARGE if many and threads == WARP else small
    size = np.int64(rows), np.int32(columns)
    grid = blocks(rows, large // threads)
    ranges, moments = cupy.empty((grid, 2), np.float32), cupy.empty((rows, 2), np.float32)
    _launch(
        f"normalised_range<{large}, {threads}, {vectors}>", grid, large, x, scale, bias, np.float32(epsilon), moments,
        ranges, *size,
    )  # fmt: skip
    (ranges, parts), found = _few(ranges), _unwritten(x.shape)
    _launch(
        f"quantize_normalised<{small}, {threads}, {vectors}>", blocks(rows, small // threads), small, x, scale, bias,
        moments, *size, ranges, parts, *found,
    )  # fmt: skip
    return found


def _row_team(columns: int, *, many: bool) -> tuple[int, int]:
    """Threads that have a row, and accesses of each that keep it; 0 where it is too long for that.

    A warp each where there are many rows, else as many threads as can have a part: what few rows take is latency.
    """
    accesses, most = -(-columns // WIDE), KEPT if many else 1
    threads = next((team for team in ROW_TEAMS if accesses <= team * most), max(ROW_TEAMS))
    vectors = -(-accesses // threads)
    return threads, vectors if vectors <= KEPT else 0


def times(x: cupy.ndarray, factor: cupy.ndarray | None = None) -> Quantized:
    """Of x, or of x factor[column]; see `takes`."""
    import cupy

    x = contiguous(x)
    grid = blocks(x.size, THREADS * WIDE * LOADS, RESIDENT * device.gpu().multiprocessors)
    ranges = cupy.empty((grid, 2), np.float32)
    _launch("factored_range", grid, THREADS, x, factor, np.int64(x.size), np.int32(x.shape[-1]), ranges)
    return quantize_within(x, ranges, factor)


def quantize_within(x: cupy.ndarray, ranges: cupy.ndarray, factor: cupy.ndarray | None = None) -> Quantized:
    """Of x (times factor[column]) whose range is that of `ranges` (..., 2); x contiguous, see `takes`."""
    (ranges, parts), found = _few(ranges), _unwritten(x.shape)
    loads = LOADS if x.size >= THREADS * WIDE * LOADS * RESIDENT * device.gpu().multiprocessors else 1
    _launch(
        f"quantize_within<{loads}>", blocks(x.size, THREADS * WIDE * loads), THREADS, x, factor, np.int64(x.size),
        np.int32(x.shape[-1]), ranges, parts, *found,
    )  # fmt: skip
    return found


def _few(ranges: cupy.ndarray) -> tuple[cupy.ndarray, np.int32]:
    """Ranges that every block can read, and how many."""
    import cupy

    parts = ranges.size // 2
    if parts <= FEW:
        return ranges, np.int32(parts)
    fewer = cupy.empty((FEWER, 2), np.float32)
    _launch("fewer_ranges", FEWER, THREADS, ranges, np.int32(parts), fewer)
    return fewer, np.int32(FEWER)


def _launch(name: str, grid: int, block: int, *arguments: Any) -> None:
    launch(kernel("dynamic", name), grid, block, *arguments, overlaps=True)


def _unwritten(shape: tuple[int, ...]) -> Quantized:
    import cupy

    return cupy.empty(shape, np.uint8), cupy.empty((), np.float32), cupy.empty((), np.uint8)


def takes(x: Any, factor: Any = None) -> bool:
    """Whether x, and factors of its columns, are what the kernels here read: whole groups of four float32."""
    if x.dtype != np.float32 or not 0 < x.size < MOST or x.shape[-1] % WIDE or not aligned(x, factor):
        return False
    return factor is None or bool(factor.shape == x.shape[-1:] and factor.dtype == np.float32)
