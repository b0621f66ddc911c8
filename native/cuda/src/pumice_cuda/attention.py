"""Attention of whole heads in one kernel: softmax(factor Q K' + mask) V, to 16 bits of mantissa and float32's range."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice_cuda import device, dynamic
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch

if TYPE_CHECKING:
    import cupy

SIZES = (16, 32, 64, 128)
"""Of a head."""
QUERIES, WARP = 16, 32
"""Of a warp, and its threads."""
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
    return _attention(q, k, v, factor, mask, None, None).transpose(0, 2, 1, 3)


def quantized_attention(
    q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, factor: float, mask: cupy.ndarray | None = None,
    columns: cupy.ndarray | None = None,
) -> dynamic.Quantized:  # fmt: skip
    """DynamicQuantizeLinear of `attention` as (batch, queries, heads * size), times factors of its columns if given."""
    import cupy

    batch, heads, queries, size = q.shape
    ranges = cupy.empty((_division(q, k).blocks(q), 2), np.float32)
    y = _attention(q, k, v, factor, mask, columns, ranges)
    return dynamic.quantize_within(y.reshape(batch, queries, heads * size), ranges)


def _attention(q: Any, k: Any, v: Any, factor: float, mask: Any, columns: Any, ranges: Any) -> Any:
    """(batch, queries, heads, size)"""
    import cupy

    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    out = cupy.empty((batch, queries, heads, size), np.float32)
    if mask is not None:
        mask = cupy.broadcast_to(mask, (batch, heads, queries, keys))
    per_key = 0 if mask is None else mask.strides[3] // mask.itemsize
    shape = Shape(
        *map(_strides, (q, k, v, out.transpose(0, 2, 1, 3))), Heads() if mask is None else _strides(mask), per_key,
        queries, keys, factor,
    )  # fmt: skip
    division = _division(q, k)
    launch(
        kernel("attention", f"attention<{size}, {division.arguments}>"), division.grid(q), division.threads,
        q, k, v, mask, columns, out, ranges, shape, shared=division.shared(size),
        overlaps=True,
    )  # fmt: skip
    return out


@attrs.frozen
class Division:
    """What a block has."""

    warps: int
    """Of a group, each with queries of its own."""
    keys: int
    """Of a chunk of a group."""
    groups: int = 1
    """That share the keys out among them."""

    @property
    def arguments(self) -> str:
        return f"{self.warps}, {self.keys}, {self.groups}"

    @property
    def threads(self) -> int:
        return WARP * self.warps * self.groups

    def shared(self, size: int) -> int:
        """Bytes of shared memory for keys and values."""
        return self.groups * 2 * self.keys * (size + PADDING) * ELEMENT_BYTES

    def grid(self, q: Any) -> tuple[int, int, int]:
        batch, heads, queries, _ = q.shape
        return blocks(queries, QUERIES * self.warps), heads, batch

    def blocks(self, q: Any) -> int:
        return math.prod(self.grid(q))


def _division(q: Any, k: Any) -> Division:
    """Large blocks, which read keys and values less often; where they would be few, keys are shared out."""
    wide, processors = q.shape[3] > 64, device.gpu().multiprocessors
    small, large = (Division(4, 32), Division(8, 64)) if wide else (Division(4, 64), Division(8, 128))
    if not wide and k.shape[2] > 32 and 2 * small.blocks(q) <= processors:
        return Division(4, 32, 4)
    return large if q.shape[2] > QUERIES * small.warps and large.blocks(q) >= processors else small


def _strides(x: Any) -> Heads:
    return Heads(*(step // x.itemsize for step in x.strides[:3]))


def _begins_wide(x: Any) -> bool:
    """Whether rows of float32 are contiguous and begin at multiples of 16 bytes."""
    steps = [step // x.itemsize for step, count in zip(x.strides[:3], x.shape[:3], strict=True) if count > 1]
    contiguous = x.shape[3] == 1 or x.strides[3] == x.itemsize
    return bool(
        x.dtype == np.float32 and contiguous and x.data.ptr % 16 == 0 and all(step % QUAD == 0 for step in steps)
    )
