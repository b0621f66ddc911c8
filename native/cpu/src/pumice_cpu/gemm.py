"""Matrix products with packed weights and a fused epilogue.

    out = epilogue(sum over k of (a[m, k] - a_zero) (b[k, n] - b_zero[n]))

`pack` rearranges B once for the instruction set in force; `gemm` multiplies, reading A in place where its rows are
contiguous and of the type that the kernel wants (other layouts are gathered block by block into the cache, never copied
whole). `batched` multiplies stacks of matrices by NumPy's rules of broadcasting, packing as it goes. Products: `float`
(f32, or bf16 widened), `bfloat` (operands rounded to bf16, sums in f32), `integer` (8 bits by 8 bits, exact).
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import DTypeLike

from pumice_cpu.arrays import Array, contiguous, empty, pointer, refuse_overlap, rows
from pumice_cpu.native import NativeError, check, ffi, library

Product = Literal["float", "bfloat", "integer"]
PRODUCTS = {"float": 0, "bfloat": 1, "integer": 2}
TYPES = {"float32": 0, "bfloat16": 1, "uint8": 2, "int8": 3, "int32": 4}
ACTIVATIONS = {"none": 0, "clip": 1, "gelu": 2, "silu": 3, "tanh": 4, "sigmoid": 5}
LONGEST_INTEGER_SUM = 65_000


@attrs.frozen(kw_only=True, eq=False)
class Epilogue:
    """What becomes of a sum s before it is stored; see `struct pumice_epilogue` in csrc/gemm/api.h for the order.

    v = s * scale * row_scale + bias + (residual - residual_zero) * residual_scale, then the activation; 8-bit outputs
    are table[clamp(round(v / divisor) + zero)].
    """

    output: DTypeLike = np.float32
    scale: Array | float | None = None
    """One, or one a column."""
    row_scale: Array | None = None
    bias: Array | None = None
    residual: Array | None = None
    """Of the output's shape, or one row."""
    residual_scale: float = 1.0
    residual_zero: int = 0
    activation: Literal["none", "clip", "gelu", "silu", "tanh", "sigmoid"] = "none"
    low: float = -math.inf
    high: float = math.inf
    divisor: float = 1.0
    zero: int = 0
    table: Array | None = None
    """256 bytes, by the bits of the quantized value."""
    offset: Array | None = None
    """One int32 a column, added to integer sums: a bias in units of the product of the scales."""
    row_term: Array | None = None
    column_term: Array | None = None


PLAIN = Epilogue()


class Packed:
    """B as the kernels of one level read it; freed with its last reference."""

    def __init__(self, handle: Any, product: Product, k: int, n: int) -> None:
        self.handle = ffi().gc(handle, library().pumice_packed_free)
        self.product, self.k, self.n = product, k, n

    @property
    def nbytes(self) -> int:
        return int(library().pumice_packed_bytes(self.handle))


def pack(b: Array, product: Product = "float", *, threads: int = 0) -> Packed:
    """Rearrange B (k, n) of f32 or bf16, or of 8-bit integers. Any strides: a transposed view is read in place.

    Raises:
        NativeError: its type is not one of the product's, or integer sums could overflow.
    """
    if product == "integer" and b.shape[0] > LONGEST_INTEGER_SUM:
        raise NativeError(f"sums over k = {b.shape[0]} could overflow 32 bits; split the product along k")
    handle = ffi().new("struct pumice_packed **")
    matrix, b = _matrix(b, "B")
    check(library().pumice_pack(handle, PRODUCTS[product], matrix, threads), f"packing {b.dtype}{list(b.shape)}")
    return Packed(handle[0], product, *b.shape)


def gemm(
    a: Array,
    b: Packed,
    epilogue: Epilogue = PLAIN,
    *,
    a_zero: int = 0,
    b_zero: Array | None = None,
    out: Array | None = None,
    threads: int = 0,
) -> Array:
    """epilogue(A B) as (m, n).

    Args:
        a: (m, k), f32 or bf16, or u8 or s8.
        b: what `pack` made of (k, n).
        epilogue: what is stored, the plain f32 sums if it is left out.
        a_zero: zero point of integers.
        b_zero: (n,), zero points of B's columns.
        out: where to write; rows contiguous, overlapping no operand.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    if out is None:
        out = empty((a.shape[0], b.n), epilogue.output)
    bound(a, b, epilogue, out, a_zero=a_zero, b_zero=b_zero, threads=threads)()
    return out


def bound(
    a: Array,
    b: Packed,
    epilogue: Epilogue,
    out: Array,
    *,
    a_zero: int = 0,
    b_zero: Array | None = None,
    threads: int = 0,
) -> Callable[[], None]:
    """`gemm` on these very arrays as a call without arguments, for layers that run again and again.

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    _check_result(out, (a.shape[0], b.n), epilogue.output, a, epilogue.residual)
    zeros = None if b_zero is None else np.ascontiguousarray(np.broadcast_to(b_zero, (b.n,)), np.int32)
    matrix, kept = _matrix(a, "A")
    struct, alive = _epilogue(epilogue, b.n)
    stride = out.strides[0] // out.itemsize if out.shape[0] > 1 else b.n
    run, handle, b_zeros, target = library().pumice_gemm, b.handle, pointer(zeros), pointer(out)

    def call(_alive: Any = (kept, b, zeros, alive, out)) -> None:
        status = run(handle, matrix, a_zero, b_zeros, struct, target, stride, threads)
        if status:
            check(status, f"the product of {a.dtype}{list(a.shape)} and {[b.k, b.n]}")

    return call


def batched(
    a: Array,
    b: Array,
    product: Product = "float",
    epilogue: Epilogue = PLAIN,
    *,
    a_zero: int = 0,
    b_zero: int = 0,
    threads: int = 0,
) -> Array:
    """A B for stacks (..., m, k) and (..., k, n), broadcast against each other, as (..., m, n). No array is copied.

    Raises:
        NativeError: shapes or types do not fit.
    """
    stack = a.shape[:-2] if a.shape[:-2] == b.shape[:-2] else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = empty((*stack, a.shape[-2], b.shape[-1]), epilogue.output)
    if out.size == 0:
        return out
    (a_matrix, a_kept), (b_matrix, b_kept) = _matrix(a, "A"), _matrix(b, "B")
    struct, alive = _epilogue(epilogue, b.shape[-1])
    offsets = [_offsets(x.shape, x.strides, x.itemsize, stack) for x in (a_kept, b_kept, out)]
    status = library().pumice_gemm_batch(
        PRODUCTS[product], math.prod(stack), a_matrix, pointer(offsets[0]), b_matrix, pointer(offsets[1]),
        a_zero, b_zero, struct, pointer(out), pointer(offsets[2]), out.shape[-1], threads,
    )  # fmt: skip
    if status:
        check(status, f"the product of {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}")
    del a_kept, b_kept, alive
    return out


def product(a: Array, b: Array, *, threads: int = 0) -> Array:
    """A B for float32 matrices (m, k) and (k, n) of any strides that are new in every call, as in training.

    Where the level multiplies split operands, large products are as exact as `nhwc.Product`.

    Raises:
        NativeError: shapes or types do not fit.
    """
    out = empty((a.shape[0], b.shape[1]))
    if out.size == 0:
        return out
    (a_matrix, a_kept), (b_matrix, b_kept) = _matrix(a, "A"), _matrix(b, "B")
    status = library().pumice_new_product(a_matrix, b_matrix, pointer(out), threads)
    check(status, f"the product of {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}")
    del a_kept, b_kept
    return out


# --- structs ----------------------------------------------------------------------------------------------------------


def code_of(dtype: np.dtype[Any]) -> int:
    """`enum pumice_type` of a dtype.

    Raises:
        NativeError: no kernel takes it.
    """
    found = _CODES.get(dtype)  # asking a dtype for its name takes a microsecond
    if found is None:
        found = TYPES.get(dtype.name)
        if found is None:
            raise NativeError(f"matrices of {dtype} have no kernel; convert them to float32")
        _CODES[dtype] = found
    return found


_CODES: dict[np.dtype[Any], int] = {}


def _matrix(array: Array, what: str) -> tuple[Any, Array]:
    """The struct of the first matrix of a stack, and the array that must stay alive with it.

    Negative and fractional strides need a copy.
    """
    size, (down, across) = array.itemsize, array.strides[-2:]
    if down < 0 or across < 0 or down % size or across % size:
        array = contiguous(array, what)
        down, across = array.strides[-2:]
    fields = (pointer(array), code_of(array.dtype), *array.shape[-2:], down // size, across // size)
    return ffi().new("struct pumice_matrix *", fields), array


@functools.lru_cache(maxsize=1024)
def _offsets(shape: tuple[int, ...], strides: tuple[int, ...], size: int, stack: tuple[int, ...]) -> Array:
    """Elements from a stack's first one to the first of each of its matrices, repeated as the broadcast stack does."""
    missing = (0,) * (len(stack) - len(shape) + 2)
    steps = missing + tuple(
        0 if extent == 1 else stride // size for extent, stride in zip(shape[:-2], strides[:-2], strict=True)
    )
    total = np.zeros(stack, np.int64)
    for axis, step in enumerate(steps):
        along = [1] * len(stack)
        along[axis] = stack[axis]
        total += (np.arange(stack[axis], dtype=np.int64) * step).reshape(along)
    return total.ravel()


def _check_result(out: Array, shape: tuple[int, int], dtype: DTypeLike, *operands: Array | None) -> None:
    if out.shape != shape or out.dtype != np.dtype(dtype):
        raise NativeError(f"`out` is {out.dtype}{list(out.shape)} but the result is {np.dtype(dtype)}{list(shape)}")
    if out.ndim and shape[1] > 1 and out.strides[1] != out.itemsize:
        raise NativeError("the rows of `out` must be contiguous; give an `out` in C order")
    refuse_overlap(out, *operands)


def _floats(values: Array | float | None, count: int) -> Array | None:
    if values is None:
        return None
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if flat.size not in {1, count}:
        raise NativeError(f"a scale or bias has {flat.size} elements for {count} columns; give one a column")
    return flat


def _epilogue(e: Epilogue, n: int) -> tuple[Any, list[Any]]:
    """The struct for n columns, made once while the record lives, and the arrays it points into."""
    made = _STRUCTS.get(e)
    if made is None or made[0] != n:
        made = _STRUCTS[e] = (n, *_new_epilogue(e, n))
    return made[1], made[2]


_STRUCTS: weakref.WeakKeyDictionary[Epilogue, tuple[int, Any, list[Any]]] = weakref.WeakKeyDictionary()


def _new_epilogue(e: Epilogue, n: int) -> tuple[Any, list[Any]]:
    struct = ffi().new("struct pumice_epilogue *")
    struct.output = code_of(np.dtype(e.output))
    struct.activation = ACTIVATIONS[e.activation]
    struct.low, struct.high, struct.divisor, struct.zero = e.low, e.high, e.divisor, e.zero
    alive: list[Any] = []

    def place(field: str, array: Array | None) -> None:
        if array is not None:
            alive.append(array)
            setattr(struct, field, pointer(array))

    scale, bias = _floats(e.scale, n), _floats(e.bias, n)
    place("scale", scale)
    struct.scale_step = int(scale is not None and scale.size > 1)
    place("bias", bias if bias is None or bias.size == n else np.full(n, bias[0], np.float32))
    place("row_scale", None if e.row_scale is None else np.ascontiguousarray(e.row_scale, np.float32))
    place("offset", None if e.offset is None else np.ascontiguousarray(np.broadcast_to(e.offset, (n,)), np.int32))
    place("row_term", None if e.row_term is None else np.ascontiguousarray(e.row_term, np.int32))
    place("column_term", None if e.column_term is None else np.ascontiguousarray(e.column_term, np.int32))
    place("table", None if e.table is None else np.ascontiguousarray(e.table).view(np.uint8))
    if e.residual is not None:
        residual, stride = (e.residual, 0) if e.residual.ndim == 1 else rows(e.residual, "residual")
        place("residual", contiguous(residual, "residual") if residual.ndim == 1 else residual)
        struct.residual_stride, struct.residual_type = stride, code_of(residual.dtype)
        struct.residual_scale, struct.residual_zero = e.residual_scale, e.residual_zero
    return struct, alive
