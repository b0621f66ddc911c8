"""Attention of whole heads in one kernel: softmax(factor Q K' + mask) V, to 16 bits of mantissa and float32's range."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch

if TYPE_CHECKING:
    import cupy

SIZES = (16, 32, 64, 128)
"""Of a head."""
QUERIES, GROUP_THREADS = 64, 128
"""Of a block, and threads of a group of it; as in csrc/attention.cu."""
PADDING, ELEMENT_BYTES = 8, 4
"""Elements behind the rows of keys in shared memory, and bytes of both their parts."""
QUAD = 4
"""Words of 16 bytes, at multiples of which rows begin."""


class Heads(ctypes.Structure):
    """Strides of an array (batch, heads, rows, size), in elements."""

    _fields_ = [(name, ctypes.c_longlong) for name in ("batch", "head", "row")]


class Shape(ctypes.Structure):
    """`struct Shape` of csrc/attention.cu."""

    _fields_ = [
        *((name, Heads) for name in ("q", "k", "v", "out", "mask")),
        ("mask_key", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("queries", "keys")),
        ("factor", ctypes.c_float),
    ]


def takes(q: Any, k: Any, v: Any) -> bool:
    """Whether the kernel can read arrays (batch, heads, rows, size) as they lie."""
    batch, heads, _, size = q.shape
    fits = size in SIZES and k.shape[:2] == v.shape[:2] == (batch, heads) and k.shape[2:] == v.shape[2:]
    return bool(
        fits and k.shape[3] == size and k.shape[2] and q.size and all(map(_begins_wide, (q, k, v)))
        and max(heads, batch) < 1 << 16
    )  # fmt: skip


def attention(
    q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, factor: float, mask: cupy.ndarray | None = None
) -> cupy.ndarray:
    """(batch, heads, queries, size), which lies in memory as (batch, queries, heads, size).

    Args:
        q: (batch, heads, queries, size) of float32, as `takes` wants it.
        k: (batch, heads, keys, size), likewise.
        v: the same.
        factor: of the scores.
        mask: what is added to them, of a shape that broadcasts to (batch, heads, queries, keys), of float32.
    """
    import cupy

    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    out = cupy.empty((batch, queries, heads, size), np.float32).transpose(0, 2, 1, 3)
    if mask is not None:
        mask = cupy.broadcast_to(mask, (batch, heads, queries, keys))
    tiles = blocks(queries, QUERIES)
    chunk, groups = _division(size, keys, tiles * heads * batch)
    per_key = 0 if mask is None else mask.strides[3] // mask.itemsize
    shape = Shape(
        *map(_strides, (q, k, v, out)), Heads() if mask is None else _strides(mask), per_key, queries, keys, factor,
    )  # fmt: skip
    launch(
        kernel("attention", f"attention<{size}, {chunk}, {groups}>"), (tiles, heads, batch), GROUP_THREADS * groups,
        q, k, v, mask, out, shape, shared=groups * 2 * chunk * (size + PADDING) * ELEMENT_BYTES,
    )  # fmt: skip
    return out


def _division(size: int, keys: int, tiles: int) -> tuple[int, int]:
    """Keys of a chunk, and groups of warps that share them out where there are few blocks."""
    few = 2 * tiles <= device.gpu().multiprocessors
    if size > 64:
        return 16, 1
    return (64 if keys > 64 or not few else 32), 2 if few else 1


def _strides(x: Any) -> Heads:
    return Heads(*(step // x.itemsize for step in x.strides[:3]))


def _begins_wide(x: Any) -> bool:
    """Whether rows of float32 are contiguous and begin at multiples of 16 bytes."""
    steps = [step // x.itemsize for step, count in zip(x.strides[:3], x.shape[:3], strict=True) if count > 1]
    contiguous = x.shape[3] == 1 or x.strides[3] == x.itemsize
    return bool(
        x.dtype == np.float32 and contiguous and x.data.ptr % 16 == 0 and all(step % QUAD == 0 for step in steps)
    )
