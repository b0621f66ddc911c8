"""NumPy arrays on their way to C: pointers, alignment, layout, overlap.

Kernels take rows of contiguous elements with a stride between rows. What already has that form is passed in place,
aligned or not; anything else is copied, and the copy is reported to the logger `pumice_cpu.arrays` at level DEBUG.
Results never share memory with operands: a function that is given an `out` refuses one that overlaps an input.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pumice_cpu.native import NativeError, ffi, library

ALIGNMENT = 64
HUGE = 1 << 20
"""Bytes from which arrays lie on huge pages, where the system has them."""
LOG = logging.getLogger(__name__)

C_TYPES = {
    "float32": "float *",
    "float64": "double *",
    "bfloat16": "uint16_t *",
    "uint16": "uint16_t *",
    "int8": "int8_t *",
    "uint8": "uint8_t *",
    "bool": "uint8_t *",
    "int32": "int32_t *",
    "int64": "int64_t *",
}
_POINTERS: dict[np.dtype[Any], tuple[Any, Any]] = {}
KEEP = 1 << 28
"""Bytes of large arrays that are no more, kept for those to come."""
_KEPT: defaultdict[int, list[Any]] = defaultdict(list)
_KEPT_BYTES = [0]

Array = NDArray[Any]


def empty(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
    """An uninitialised array whose first element lies on a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape) * dtype.itemsize
    if count >= HUGE:
        return _large(count).view(dtype).reshape(shape)
    memory = np.empty(count + ALIGNMENT, np.uint8)
    start = -int(ffi().cast("uintptr_t", ffi().from_buffer(memory))) % ALIGNMENT
    return np.ndarray(shape, dtype, memory, start)


def _large(count: int) -> Array:
    """Bytes on huge pages: a tile's rows lie far apart, and small pages would miss the translation cache at each.

    A block that is given back is kept for the next array of its size: fresh pages must be zeroed by the system, which
    takes longer than many a layer.
    """
    with contextlib.suppress(IndexError):  # another thread may take the last one
        block = _KEPT[count].pop()
        _KEPT_BYTES[0] -= count
        return _bytes_of(block, count)
    block = library().pumice_alloc(count)
    if not block:
        raise MemoryError(f"{count} bytes")
    return _bytes_of(block, count)


def _bytes_of(block: Any, count: int) -> Array:
    handle = ffi().gc(block, lambda pointer: _give_back(pointer, count), count)
    return np.frombuffer(ffi().buffer(handle, count), np.uint8)


def _give_back(block: Any, count: int) -> None:
    if _KEPT_BYTES[0] + count <= KEEP:
        _KEPT_BYTES[0] += count
        _KEPT[count].append(ffi().cast("void *", block))
    else:
        library().pumice_free(block)


def pointer(array: Array | None) -> Any:
    """A C pointer of the array's type to its first element; NULL for None. The array must outlive the call."""
    if array is None:
        return ffi().NULL
    kinds = _POINTERS.get(array.dtype)
    if kinds is None:
        kind = C_TYPES[array.dtype.name]
        kinds = _POINTERS[array.dtype] = (ffi().typeof(kind), ffi().typeof(kind.replace(" *", "[]")))
    if array.flags.c_contiguous and array.dtype.kind != "V":
        return ffi().from_buffer(kinds[1], array)
    return ffi().cast(kinds[0], array.__array_interface__["data"][0])


def contiguous(array: Array, what: str) -> Array:
    """The array in C order, itself if it is."""
    if array.flags.c_contiguous:
        return array
    LOG.debug("%s was copied: %s%s with strides %s", what, array.dtype, list(array.shape), array.strides)
    return np.ascontiguousarray(array)


def in_memory_order(array: Array) -> tuple[Array, tuple[int, ...]] | None:
    """The array with its axes in the order in which memory runs, contiguous then, and the axes that go back.

    None if it has gaps or repeats. So an image with channels last is taken as it is.
    """
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis] if array.shape[axis] > 1 else 0)
    turned = array.transpose(order)
    if not turned.flags.c_contiguous:
        return None
    back = [0] * array.ndim
    for place, axis in enumerate(order):
        back[axis] = place
    return turned, tuple(back)


def rows(array: Array, what: str) -> tuple[Array, int]:
    """A matrix (rows, columns) with contiguous columns, and the elements from one row to the next."""
    size = array.itemsize
    fits = array.shape[1] <= 1 or array.strides[1] == size
    stride = array.strides[0] if array.shape[0] > 1 else array.shape[1] * size
    if fits and stride % size == 0 and stride >= array.shape[1] * size:
        return array, stride // size
    LOG.debug("%s was copied: %s%s with strides %s", what, array.dtype, list(array.shape), array.strides)
    return np.ascontiguousarray(array), array.shape[1]


def refuse_overlap(out: Array, *operands: Array | None) -> None:
    """Raises NativeError if `out` may share memory with an operand.

    Raises:
        NativeError: it may.
    """
    if any(operand is not None and np.may_share_memory(out, operand) for operand in operands):
        raise NativeError("the result would overwrite an operand while it is read; give an `out` of its own memory")
