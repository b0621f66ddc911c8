"""Products with weights of four bits: each weight is a code, 0 to 15, into a table of 16 entries.

    weight(k, n) = (table[code(k, n)] - offset) scale

with the table, offset and scale of the column n, or of the column's group of `group` consecutive k. A codebook from
k-means has a table a column; NF4 has one table and a scale a group; affine INT4 is the table 0, 1, ..., 15 with the
zero point as offset. Tables of int8 multiply activations that are quantized to int8 row by row, tables of bfloat16
multiply activations rounded to bfloat16, tables of float32 are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pumice_cpu.arrays import Array, contiguous, empty, pointer, refuse_overlap, rows
from pumice_cpu.native import NativeError, check, ffi, library

TableType = Literal["int8", "bfloat16", "float32"]
TYPES = {"int8": 0, "bfloat16": 1, "float32": 2}
ENTRIES = 16
BLOCK = 128
LONGEST_SUM = 60_000


class Codebook:
    """Weights (k, n) of four bits as the kernels of one level read them; freed with the last reference."""

    def __init__(self, handle: Any, k: int, n: int) -> None:
        self.handle = ffi().gc(handle, library().pumice_lowbit_free)
        self.k, self.n = k, n

    @property
    def nbytes(self) -> int:
        return int(library().pumice_lowbit_bytes(self.handle))


def pack(
    codes: Array,
    table: ArrayLike,
    scale: ArrayLike = 1.0,
    offset: ArrayLike | None = None,
    *,
    group: int | None = None,
    table_type: TableType = "int8",
    threads: int = 0,
) -> Codebook:
    """Arrange 4-bit weights for the level in force.

    Args:
        codes: (k, n) integers, 0 to 15.
        table: (16,), (n, 16), or (n, groups, 16).
        scale: broadcast to (n, groups); groups = ceil(k / group).
        offset: the same; in units of the table, taken off every entry.
        group: consecutive k that share a scale: 32, 64 or a multiple of 128. None: all of them.
        table_type: int8 entries are used as they are; bfloat16 ones are rounded.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: a code above 15, shapes that do not fit, a group size without a kernel.
    """
    k, n = codes.shape
    group = k if group is None else min(group, k)
    groups = -(-k // max(group, 1))
    _check_codes(codes, k, group)
    entries = np.ascontiguousarray(table, np.int8 if table_type == "int8" else np.float32)
    if entries.shape not in {(ENTRIES,), (n, ENTRIES), (n, groups, ENTRIES)}:
        raise NativeError(f"a table of shape {list(entries.shape)} fits no (16,), ({n}, 16) or ({n}, {groups}, 16)")
    if entries.ndim == 3 and groups > 1 and group < BLOCK:
        raise NativeError(f"tables differ by groups of {group}; the kernels need groups of {BLOCK} or more for that")
    scales = np.ascontiguousarray(np.broadcast_to(np.asarray(scale, np.float32), (n, groups)))
    offsets = (
        None if offset is None else np.ascontiguousarray(np.broadcast_to(np.asarray(offset, np.float32), (n, groups)))
    )
    by_column = np.ascontiguousarray(codes.T, np.uint8)
    struct = ffi().new("struct pumice_codebook *")
    struct.codes, struct.n, struct.k, struct.type = pointer(by_column), n, k, TYPES[table_type]
    struct.table, struct.group = pointer(entries), group
    struct.table_column = 0 if entries.ndim == 1 else ENTRIES * (groups if entries.ndim == 3 else 1)
    struct.table_group = ENTRIES if entries.ndim == 3 and groups > 1 else 0
    struct.scale, struct.offset = pointer(scales), pointer(offsets)
    handle = ffi().new("struct pumice_lowbit **")
    check(library().pumice_lowbit_pack(handle, struct, threads), f"packing 4-bit weights {[k, n]}")
    return Codebook(handle[0], k, n)


def _check_codes(codes: Array, k: int, group: int) -> None:
    if codes.dtype.kind not in "iu" or (codes.size and (codes.min() < 0 or codes.max() >= ENTRIES)):
        raise NativeError("codes of 4-bit weights must be integers from 0 to 15")
    if not 1 <= k <= LONGEST_SUM:
        raise NativeError(f"4-bit weights have {k} rows; 1 to {LONGEST_SUM} can be summed in 32 bits")
    if group < k and group not in {32, 64} and group % BLOCK:
        raise NativeError(f"groups of {group} have no kernel; use 32, 64 or a multiple of {BLOCK}")


def pack_affine(
    codes: Array, scale: Array, zero_point: Array | None = None, *, group: int | None = None, threads: int = 0
) -> Codebook:
    """Affine INT4: weight = (code - zero_point) scale, codes 0 to 15; without zero points, 8 stands for zero.

    Args:
        codes: (k, n).
        scale: broadcast to (n, groups).
        zero_point: the same.
        group: as in `pack`.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: as `pack`.
    """
    centred = np.arange(ENTRIES, dtype=np.int8) - np.int8(8)
    offset = None if zero_point is None else np.asarray(zero_point, np.float32) - np.float32(8)
    return pack(codes, centred, scale, offset, group=group, threads=threads)


def matmul(
    a: Array, weights: Codebook, bias: Array | None = None, *, out: Array | None = None, threads: int = 0
) -> Array:
    """A W + bias as (..., n), for float32 A of shape (..., k).

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    if out is None:
        out = empty((*a.shape[:-1], weights.n))
    bound(a, weights, bias, out, threads=threads)()
    return out


def bound(a: Array, weights: Codebook, bias: Array | None, out: Array, *, threads: int = 0) -> Callable[[], None]:
    """`matmul` on these very arrays as a call without arguments, for layers that run again and again.

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    if a.dtype != np.float32 or a.shape[-1] != weights.k:
        raise NativeError(
            f"A is {a.dtype}{list(a.shape)}; 4-bit weights {[weights.k, weights.n]} take float32 (..., k)"
        )
    matrix, stride = rows(a if a.ndim == 2 else contiguous(a, "A").reshape(-1, weights.k), "A")
    if bias is not None:
        bias = np.ascontiguousarray(np.broadcast_to(np.asarray(bias, np.float32), (weights.n,)))
    shape = (*a.shape[:-1], weights.n)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise NativeError(f"`out` must be a contiguous float32 array of shape {list(shape)}")
    refuse_overlap(out, matrix, bias)
    run, handle, n, m = library().pumice_lowbit_matmul, weights.handle, weights.n, matrix.shape[0]
    left, offsets, target = pointer(matrix), pointer(bias), pointer(out)

    def call(_alive: Any = (matrix, weights, bias, out)) -> None:
        status = run(handle, left, m, stride, offsets, target, n, threads)
        if status:
            check(status, f"the product of {list(a.shape)} and 4-bit weights {[weights.k, n]}")

    return call


def quantize_rows(a: Array, *, threads: int = 0) -> tuple[Array, Array]:
    """Each row of a float32 matrix as int8, symmetric: (q, scale) with a about q scale and scale = max |row| / 127.

    Raises:
        NativeError: A is no float32 matrix.
    """
    if a.dtype != np.float32 or a.ndim != 2:
        raise NativeError(f"rows to quantize are {a.dtype}{list(a.shape)}; give a float32 matrix")
    a, stride = rows(a, "A")
    q, scale = empty(a.shape, np.int8), empty(a.shape[0])
    status = library().pumice_quantize_rows(pointer(a), *a.shape, stride, pointer(q), pointer(scale), threads)
    check(status, f"quantizing the rows of {list(a.shape)}")
    return q, scale
