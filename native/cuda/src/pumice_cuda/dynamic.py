"""DynamicQuantizeLinear together with what makes the values: their range is noted as they are made.

All arrays are CuPy's, of float32. Each function returns (q, scale, zero): uint8 levels, and arrays without axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import aligned, contiguous, team_of

if TYPE_CHECKING:
    import cupy

Quantized = tuple["cupy.ndarray", "cupy.ndarray", "cupy.ndarray"]
THREADS, WIDE, LOADS = 256, 4, 4
"""Of a block of csrc/dynamic.cu, elements of an access and accesses of a thread at most."""
FEW, FEWER = 2304, 128
"""Ranges that every block of the quantization can read, and to how many more of them are brought down."""
RESIDENT, ROWS_RESIDENT = 4, 2048
"""Blocks of a multiprocessor that walk over elements, and threads of one that walk over rows."""
MOST = 1 << 32
"""Elements, whose columns are counted in 32 bits."""


def layer_norm(x: cupy.ndarray, scale: cupy.ndarray, bias: cupy.ndarray | None, epsilon: float) -> Quantized:
    """Of x normalised over its last axes, as many as `scale` (and `bias`) have elements."""
    import cupy

    x, columns = contiguous(x), scale.size
    rows, y = x.size // columns, cupy.empty(x.shape, np.float32)
    team = team_of(columns, x.itemsize, aligned=aligned(x))
    grid = min(team.grid(rows), ROWS_RESIDENT // team.block * device.gpu().multiprocessors)
    ranges = cupy.empty((grid, 2), np.float32)
    launch(
        kernel("dynamic", f"layer_norm<{team.arguments}>"), grid, team.block, x, contiguous(scale),
        None if bias is None else contiguous(bias), np.float32(epsilon), y, ranges, np.int64(rows), np.int32(columns),
    )  # fmt: skip
    return quantize_within(y, ranges)


def times(x: cupy.ndarray, factor: cupy.ndarray | None = None) -> Quantized:
    """Of x, or of x factor[column]; see `takes`."""
    import cupy

    x = contiguous(x)
    grid = blocks(x.size, THREADS * WIDE * LOADS, RESIDENT * device.gpu().multiprocessors)
    ranges = cupy.empty((grid, 2), np.float32)
    launch(
        kernel("dynamic", "factored_range"), grid, THREADS, x, factor, np.int64(x.size), np.int32(x.shape[-1]), ranges
    )
    return quantize_within(x, ranges, factor)


def quantize_within(x: cupy.ndarray, ranges: cupy.ndarray, factor: cupy.ndarray | None = None) -> Quantized:
    """Of x (times factor[column]) whose range is that of `ranges` (..., 2); x contiguous, see `takes`."""
    import cupy

    parts = ranges.size // 2
    if parts > FEW:
        fewer = cupy.empty((FEWER, 2), np.float32)
        launch(kernel("dynamic", "fewer_ranges"), FEWER, THREADS, ranges, np.int32(parts), fewer)
        ranges, parts = fewer, FEWER
    q, scale, zero = cupy.empty(x.shape, np.uint8), cupy.empty((), np.float32), cupy.empty((), np.uint8)
    loads = LOADS if x.size >= THREADS * WIDE * LOADS * RESIDENT * device.gpu().multiprocessors else 1
    launch(
        kernel("dynamic", f"quantize_within<{loads}>"), blocks(x.size, THREADS * WIDE * loads), THREADS, x, factor,
        np.int64(x.size), np.int32(x.shape[-1]), ranges, np.int32(parts), q, scale, zero,
    )  # fmt: skip
    return q, scale, zero


def takes(x: Any, factor: Any = None) -> bool:
    """Whether x, and factors of its columns, are what the kernels here read: whole groups of four float32."""
    if x.dtype != np.float32 or not 0 < x.size < MOST or x.shape[-1] % WIDE or not aligned(x, factor):
        return False
    return factor is None or bool(factor.shape == x.shape[-1:] and factor.dtype == np.float32)
