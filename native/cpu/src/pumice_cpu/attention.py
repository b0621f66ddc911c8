"""Attention in C: softmax(scale Q K + mask) V, head by head."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pumice_cpu.arrays import Array, empty
from pumice_cpu.native import check, ffi, library


def attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, scale: float = 1.0, threads: int = 0
) -> Array:
    """(batch, heads, queries, value depth), with queries before heads in memory.

    Args:
        q: (batch, heads, queries, depth), float32 of any strides, as all are.
        k: (batch, heads, depth, keys).
        v: (batch, heads, keys, value depth).
        mask: added to the scores; of their shape, or one that is repeated.
        scale: of the scores.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: the operands do not fit each other.
    """
    out = empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
    masked = None if mask is None else (mask.shape, mask.strides)
    shapes = (q.shape, q.strides, k.strides, v.shape, v.strides, masked, scale)
    struct = ffi().new("struct pumice_attention *", _geometry(*shapes)[0])
    struct.query, struct.key, struct.value, struct.out = _start(q), _start(k), _start(v), _start(out)
    if mask is not None:
        struct.mask = _start(mask)
    check(library().pumice_attention_run(struct, threads), "the attention")
    return out.transpose(0, 2, 1, 3)


def _start(array: Array) -> Any:
    return ffi().cast("float *", array.ctypes.data)


@lru_cache(maxsize=256)
def _geometry(
    q: tuple[int, ...], q_strides: tuple[int, ...], k_strides: tuple[int, ...], v: tuple[int, ...],
    v_strides: tuple[int, ...], mask: tuple[tuple[int, ...], tuple[int, ...]] | None, scale: float,
) -> Any:  # fmt: skip
    """The struct without pointers."""
    struct = ffi().new("struct pumice_attention *")
    struct.batch, struct.heads, struct.queries, struct.depth = q
    struct.keys, struct.value_depth, struct.scale = v[2], v[3], scale
    struct.query_steps, struct.key_steps, struct.value_steps = map(_steps, (q_strides, k_strides, v_strides))
    struct.out_steps = [q[2] * q[1] * v[3], v[3], q[1] * v[3], 1]
    if mask is not None:
        extents, strides = ((1,) * (4 - len(mask[0])) + mask[0], (0,) * (4 - len(mask[0])) + mask[1])
        struct.mask_steps = [0 if n == 1 else s // 4 for n, s in zip(extents, strides, strict=True)]
    return struct


def _steps(strides: tuple[int, ...]) -> list[int]:
    return [stride // 4 for stride in strides]
