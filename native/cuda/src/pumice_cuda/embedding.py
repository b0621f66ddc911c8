"""Rows of a table: those of a quantized one looked up and dequantized at once, and the gradient of looking rows up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import FLOATS, WARP, aligned, contiguous, type_name

if TYPE_CHECKING:
    import cupy

THREADS, WIDE, EACH = 256, 4, 4
"""Of a block, which has a row a warp; columns of an access, and accesses of a thread; as in csrc/embedding.cu."""
INDICES = {"int64": "int64", "int32": "int"}
"""Their types in the source, by NumPy's names."""


def takes(table: Any, index: Any, factor: Any) -> bool:
    """Whether the kernel reads them: a table (entries, columns) of whole groups of four, a factor for each index."""
    fits = table.ndim == 2 and table.dtype.itemsize == 1 and table.shape[0] and not table.shape[1] % WIDE
    each = factor.shape == (*index.shape, 1) and factor.dtype == np.float32 and index.dtype.name in INDICES
    return bool(fits and each and table.flags.c_contiguous and aligned(table))


def embed(table: cupy.ndarray, index: cupy.ndarray, factor: cupy.ndarray) -> cupy.ndarray:
    """table[index] factor as float32 of shape (*index.shape, columns).

    Args:
        table: (entries, columns) of int8 or uint8; see `takes`.
        index: of any shape, int64 or int32.
        factor: (*index.shape, 1) of float32.
    """
    import cupy

    columns, index = table.shape[1], contiguous(index)
    y = cupy.empty((*index.shape, columns), np.float32)
    launch(
        kernel("embedding", f"embed<{type_name(table)}, {INDICES[index.dtype.name]}>"),
        blocks(index.size, THREADS // WARP), THREADS, table, index, contiguous(factor), y, np.int64(table.shape[0]),
        np.int64(index.size), np.int32(columns),
        overlaps=True,
    )  # fmt: skip
    return y


def takes_gradient(index: Any, dy: Any) -> bool:
    """Whether the kernel reads them."""
    return bool(index.size and dy.size and index.dtype.name in INDICES and dy.dtype.name in FLOATS)


def gradient(index: cupy.ndarray, dy: cupy.ndarray, entries: int) -> cupy.ndarray:
    """(entries, columns): to every entry the sum of the rows of dy that were looked up there, in their order.

    Args:
        index: of any shape, int64 or int32; see `takes_gradient`.
        dy: (index.size, columns).
        entries: of the table.
    """
    import cupy

    index, dy, columns = contiguous(index), contiguous(dy), dy.shape[1]
    dx = cupy.empty((entries, columns), dy.dtype)
    access = WIDE if columns % WIDE == 0 and aligned(dy) else 1
    launch(
        kernel("embedding", f"embed_gradient<{type_name(dy)}, {INDICES[index.dtype.name]}, {access}>"),
        (entries, blocks(columns, THREADS * EACH * access)), THREADS, dy, index, dx, np.int64(entries),
        np.int64(index.size), np.int32(columns), overlaps=True,
    )  # fmt: skip
    return dx
