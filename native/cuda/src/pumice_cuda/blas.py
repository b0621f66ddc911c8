"""Matrix products by cuBLAS, as NumPy's matmul has them: y[..., m, n] = sum over k of a[..., m, k] b[..., k, n].

CuPy calls cuBLAS too, but never while a stream is being recorded; here the library is called directly, with a workspace
from CuPy's memory, so that recordings hold it and nothing waits. float32 and float64 are computed in their own type,
float16 and bfloat16 are summed in float32. Anything else is CuPy's.

cuBLAS counts columns first: a matrix of rows is the transpose of one of columns, so y' = b' a' is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

WORKSPACE = 32 << 20
"""Bytes; what cuBLAS asks for on Hopper."""
_TYPES = {
    "float32": (0, 68, ctypes.c_float),
    "float64": (1, 70, ctypes.c_double),
    "float16": (2, 68, ctypes.c_float),
    "bfloat16": (14, 68, ctypes.c_float),
}
"""cudaDataType, cublasComputeType_t and the type of factors, by type of the matrices."""
_DEFAULT_ALGORITHM = -1
_NOT_FOR_THIS_GPU = frozenset({8, 15})
"""CUBLAS_STATUS_ARCH_MISMATCH and CUBLAS_STATUS_NOT_SUPPORTED."""
_thread = threading.local()


@attrs.frozen
class _Operand:
    """A stack of matrices as cuBLAS takes it."""

    array: Any
    """Keeps the memory."""
    transposed: int
    leading: int
    """Elements from one row (transposed: column) to the next."""
    stride: int
    """Elements from one matrix to the next; 0 repeats it."""


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """The product of CuPy arrays after the rules of `numpy.matmul`.

    Args:
        a: (..., m, k) or (k,).
        b: (..., k, n) or (k,).
        out: where to put the result, of its shape and type.

    Raises:
        ValueError: the shapes do not fit.
        NotImplementedError: cuBLAS has no such product for this GPU.
        RuntimeError: cuBLAS fails.
    """
    import cupy

    if a.dtype != b.dtype or a.dtype.name not in _TYPES or a.ndim == 0 or b.ndim == 0:
        return cupy.matmul(a, b, out=out)
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"matrices of shapes {a.shape} and {b.shape} have no product")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if right.ndim == 2 and left.ndim > 2 and left.flags.c_contiguous:  # one matrix for all: the rows are one matrix too
        y = _product(left.reshape(-1, left.shape[-1]), right, ()).reshape(*batch, left.shape[-2], right.shape[-1])
    else:
        y = _product(left, right, batch)
    y = y[..., 0, :] if a.ndim == 1 else y
    y = y[..., 0] if b.ndim == 1 else y
    if out is None:
        return y
    out[...] = y
    return out


def _product(a: Any, b: Any, batch: tuple[int, ...]) -> Any:
    import cupy

    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    y = cupy.empty((*batch, rows, columns), a.dtype)
    if not depth:
        y.fill(0)
    if not depth or not y.size:
        return y
    kind, compute, number = _TYPES[a.dtype.name]
    left, right = _operand(a, batch), _operand(b, batch)
    one, zero = number(1), number(0)
    workspace = cupy.cuda.alloc(WORKSPACE)
    handle, stream = _handle(), cupy.cuda.get_current_stream().ptr
    _check(_library().cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
    _check(_library().cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.ptr), ctypes.c_size_t(WORKSPACE)))
    _check(
        _library().cublasGemmStridedBatchedEx(
            handle, right.transposed, left.transposed, columns, rows, depth, ctypes.byref(one),
            ctypes.c_void_p(right.array.data.ptr), kind, right.leading, ctypes.c_longlong(right.stride),
            ctypes.c_void_p(left.array.data.ptr), kind, left.leading, ctypes.c_longlong(left.stride),
            ctypes.byref(zero), ctypes.c_void_p(y.data.ptr), kind, columns, ctypes.c_longlong(rows * columns),
            math.prod(batch), compute, _DEFAULT_ALGORITHM,
        )
    )  # fmt: skip
    return y


def _operand(x: Any, batch: tuple[int, ...]) -> _Operand:
    """The matrices as they lie, copied only if rows and columns both have gaps or the stack has no one stride."""
    import cupy

    layout = _layout(x.shape[-2:], x.strides[-2:], x.itemsize)
    stride = stack_stride(x.shape[:-2], x.strides[:-2], batch, x.itemsize)
    if layout is None or stride is None:
        x = cupy.ascontiguousarray(cupy.broadcast_to(x, (*batch, *x.shape[-2:])))
        layout, stride = (0, max(1, x.shape[-1])), x.shape[-2] * x.shape[-1]
    return _Operand(x, *layout, stride)


def _layout(shape: Sequence[int], strides: Sequence[int], size: int) -> tuple[int, int] | None:
    """(transposed, leading dimension) of a matrix; None if neither rows nor columns are dense."""
    (rows, columns), (down, along) = shape, strides
    if (columns == 1 or along == size) and (rows == 1 or (down >= columns * size and down % size == 0)):
        return 0, max(columns, down // size if rows > 1 else columns)
    if (rows == 1 or down == size) and (columns == 1 or (along >= rows * size and along % size == 0)):
        return 1, max(rows, along // size if columns > 1 else rows)
    return None


def stack_stride(shape: Sequence[int], strides: Sequence[int], batch: Sequence[int], size: int) -> int | None:
    """Elements from one matrix to the next in a stack broadcast to `batch`; None if they are not equally far apart."""
    full = [1] * (len(batch) - len(shape)) + list(shape)
    steps = [0] * (len(batch) - len(shape)) + list(strides)
    axes = [(n, 0 if have == 1 else step) for n, have, step in zip(batch, full, steps, strict=True) if n > 1]
    if not axes:
        return 0
    for (_, outer), (count, inner) in itertools.pairwise(axes):
        if outer != count * inner:
            return None
    return axes[-1][1] // size if axes[-1][1] % size == 0 else None


@functools.cache
def _library() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)


def _handle() -> Any:
    """The thread's own, for the current GPU."""
    import cupy

    handles = vars(_thread).setdefault("handles", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in handles:
        handle = ctypes.c_void_p()
        _check(_library().cublasCreate_v2(ctypes.byref(handle)))
        handles[device] = handle
    return handles[device]


def _check(status: int) -> None:
    if status in _NOT_FOR_THIS_GPU:
        raise NotImplementedError(f"cuBLAS has no such product for this GPU (status {status})")
    if status:
        raise RuntimeError(f"cuBLAS refuses a matrix product (status {status})")
