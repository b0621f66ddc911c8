"""Pooling in C: windows of float images, means and maxima of their planes, and 8-bit images with channels last."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np

from pumice.ops.window import Window
from pumice_cpu import arrays
from pumice_cpu.arrays import Array
from pumice_cpu.conv_u8 import as_bytes, shape_struct
from pumice_cpu.native import check, library


def max_pool(x: Array, window: Window, *, threads: int = 0) -> Array:
    """The maximum of each window of float32 (batch, channels, *size); padding never wins, NaN does."""
    return _windows(x, window, library().PUMICE_POOL_MAX, None, threads)


def average_pool(x: Array, window: Window, counts: Array, *, threads: int = 0) -> Array:
    """The sum of the data in each window over `counts`, float32 of shape `window.output`."""
    return _windows(x, window, library().PUMICE_POOL_AVERAGE, np.ascontiguousarray(counts, np.float32), threads)


def _windows(x: Array, window: Window, what: int, counts: Array | None, threads: int) -> Array:
    x = arrays.contiguous(x, "the input of the pooling")
    channels = x.shape[1]
    y = arrays.empty((*x.shape[:2], *window.output))
    shape = shape_struct(window, channels, channels, channels)
    status = library().pumice_pool_f32(
        shape, what, len(x), arrays.pointer(x), arrays.pointer(y), arrays.pointer(counts), threads
    )
    check(status, "the pooling")
    return y


def plane_means(x: Array, *, threads: int = 0) -> Array:
    """The mean of each plane of float32 (batch, channels, *size), spatial axes kept with length 1."""
    return _planes(x, library().PUMICE_POOL_AVERAGE, threads)


def plane_maxima(x: Array, *, threads: int = 0) -> Array:
    """The maximum of each plane; NaN wins."""
    return _planes(x, library().PUMICE_POOL_MAX, threads)


def _planes(x: Array, what: int, threads: int) -> Array:
    x = arrays.contiguous(x, "the input of the pooling")
    y = arrays.empty((*x.shape[:2], *(1,) * (x.ndim - 2)))
    rows, count = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    check(
        library().pumice_pool_f32_rows(what, rows, count, arrays.pointer(x), arrays.pointer(y), threads), "the pooling"
    )
    return y


def max_pool_levels(x: Array, window: Window, *, threads: int = 0) -> Array:
    """The maximum of each window of 8-bit levels (batch, *size, channels), clipped to the data."""
    x = arrays.contiguous(x, "the input of the pooling")
    channels = x.shape[-1]
    y = arrays.empty((len(x), *window.output, channels), x.dtype)
    shape: Any = shape_struct(window, channels, channels, channels)
    status = library().pumice_pool_u8_max(shape, len(x), as_bytes(x), as_bytes(y), x.dtype == np.int8, threads)
    check(status, "the pooling")
    return y


def level_sums(x: Array, *, threads: int = 0) -> Array:
    """int32 (batch, channels): the sums of 8-bit levels (batch, *size, channels) over the image."""
    x = arrays.contiguous(x, "the input of the pooling")
    sums = arrays.empty((len(x), x.shape[-1]), np.int32)
    count, is_signed = math.prod(x.shape[1:-1]), x.dtype == np.int8
    status = library().pumice_pool_u8_sums(
        len(x), count, x.shape[-1], as_bytes(x), arrays.pointer(sums), is_signed, threads
    )
    check(status, "the pooling")
    return sums


def window_counts(window: Window, include_pad: bool) -> Array:
    """How many elements each output of an average divides by, of shape `window.output`: data, or data and padding."""
    axes = []
    for n, k, s, d, p, q, o in zip(
        window.size, window.kernel, window.strides, window.dilations, window.before, window.after, window.output,
        strict=True,
    ):  # fmt: skip
        position = np.arange(o)[:, None] * s + np.arange(k) * d - p
        low, high = (-p, n + q) if include_pad else (0, n)
        axes.append(((position >= low) & (position < high)).sum(axis=1))
    return np.asarray(reduce(np.multiply.outer, axes), np.float32)
