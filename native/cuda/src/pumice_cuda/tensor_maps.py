"""Tensor maps: how Hopper's copy engine (TMA) finds boxes of a matrix, or windows of an image, in memory.

Rows of a box are 32, 64 or 128 bytes in shared memory, swizzled as the matrix instructions read them; what lies outside
the array is filled with zeros. Maps hold addresses, so they are made for every call; the driver takes a microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cupy

ALIGNMENT = 16
"""Bytes: of the address and of every stride but the innermost."""
SWIZZLED = (32, 64, 128)
"""Bytes that a row of a box may have."""


def describable(array: cupy.ndarray) -> bool:
    """Whether the copy engine can read the array."""
    outer = zip(array.shape[:-1], array.strides[:-1], strict=True)
    return bool(
        array.size
        and array.data.ptr % ALIGNMENT == 0
        and (array.shape[-1] == 1 or array.strides[-1] == array.itemsize)
        and all(stride % ALIGNMENT == 0 and stride > 0 for size, stride in outer if size > 1)
    )


def boxes(array: cupy.ndarray, rows: int, row_bytes: int) -> Any:
    """Of an array (..., k) of any rank: boxes of `rows` of the first axis by so many bytes of the last."""
    from cuda.bindings import driver

    extents = [1] * array.ndim
    extents[0], extents[-1] = rows, row_bytes // array.itemsize
    error, made = driver.cuTensorMapEncodeTiled(
        _type(array.dtype.name), array.ndim, array.data.ptr, *_geometry(array), _list("cuuint32_t", extents[::-1]),
        _list("cuuint32_t", [1] * array.ndim), *_handling(row_bytes),
    )  # fmt: skip
    return _made(error, made, array)


def columns(array: cupy.ndarray, rows: int, row_bytes: int, beside: int) -> Any:
    """Of B as (n, taps, k): boxes of `rows` of n, one tap and so many bytes of k, of rank 5.

    `beside` is 0 for rows as they lie. Otherwise every 8 `beside` of them, a matrix (8, `beside`), come transposed, so
    that the matrix instructions give each thread the sums of 2 `beside` neighbouring columns; 8 `beside` divides n.
    """
    from cuda.bindings import driver

    sizes, steps, extents = columns_geometry(array.shape, array.strides, array.itemsize, rows, row_bytes, beside)
    error, made = driver.cuTensorMapEncodeTiled(
        _type(array.dtype.name), len(sizes), array.data.ptr, _list("cuuint64_t", sizes), _list("cuuint64_t", steps),
        _list("cuuint32_t", extents), _list("cuuint32_t", [1] * len(sizes)), *_handling(row_bytes),
    )  # fmt: skip
    return _made(error, made, array)


def columns_geometry(
    shape: Sequence[int], strides: Sequence[int], itemsize: int, rows: int, row_bytes: int, beside: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes, strides in bytes and extents of the boxes of `columns`, the innermost axis first, its stride left out."""
    n, taps, k = shape
    by_row = strides[0] if n > 1 else _whole(k * itemsize)
    by_tap = strides[1] if taps > 1 else by_row
    depth = row_bytes // itemsize
    if beside:
        group = 8 * beside
        steps = by_tap, beside * by_row, by_row, group * by_row
        return (k, taps, 8, beside, n // group), steps, (depth, 1, 8, beside, rows // group)
    return (k, taps, n, 1, 1), (by_tap, by_row, n * by_row, n * by_row), (depth, 1, rows, 1, 1)


def windows(
    images: cupy.ndarray, pixels: int, before: Sequence[int], after: Sequence[int], strides: Sequence[int],
    row_bytes: int,
) -> Any:  # fmt: skip
    """Of images (n, height, width, channels): `pixels` windows' values at one tap, so many bytes of channels.

    Windows begin at pixels -before .. size - 1 + after of each axis, `strides` apart.
    """
    from cuda.bindings import driver

    error, made = driver.cuTensorMapEncodeIm2col(
        _type(images.dtype.name), 4, images.data.ptr, *_geometry(images), [-b for b in before[::-1]], list(after[::-1]),
        row_bytes // images.itemsize, pixels, _list("cuuint32_t", [1, strides[1], strides[0], 1]),
        *_handling(row_bytes),
    )  # fmt: skip
    return _made(error, made, images)


def _geometry(array: cupy.ndarray) -> tuple[list[Any], list[Any]]:
    """Sizes and strides in the driver's order, the innermost axis first and its stride left out."""
    strides = [
        stride if size > 1 else _whole(array.shape[-1] * array.itemsize)
        for size, stride in zip(array.shape, array.strides, strict=True)
    ]
    return _list("cuuint64_t", array.shape[::-1]), _list("cuuint64_t", strides[-2::-1])


def _whole(row_bytes: int) -> int:
    return -(-row_bytes // ALIGNMENT) * ALIGNMENT


def _list(integer: str, values: Sequence[int]) -> list[Any]:
    from cuda.bindings import driver

    return [getattr(driver, integer)(value) for value in values]


def _type(name: str) -> Any:
    from cuda.bindings import driver

    types = {"int8": "UINT8", "uint8": "UINT8", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT32"}
    return getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{types[name]}")


def _handling(row_bytes: int) -> tuple[Any, ...]:
    from cuda.bindings import driver

    return (
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{row_bytes}B"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )


def _made(error: Any, made: Any, array: cupy.ndarray) -> Any:
    if int(error):
        raise RuntimeError(f"no tensor map for {array.dtype}{list(array.shape)} (CUDA error {int(error)})")
    return made
