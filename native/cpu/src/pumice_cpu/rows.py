"""Functions of elements and of rows: activations, normalisation, broadcasting arithmetic, reductions, transposition,
quantization, and what calibration and clustering count.

All take float32 arrays of any shape and strides (what is not contiguous is copied first) and give new, 64-byte-aligned
ones. Errors against exact results, in units in the last place: exp, log and erf 1, tanh 2, sigmoid 3, SiLU and GELU 4;
the tanh form of GELU loses more where its result is tiny. `threads` 0 means `native.threads()`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pumice_cpu.arrays import Array, contiguous, empty, in_memory_order, pointer, refuse_overlap
from pumice_cpu.native import NativeError, check, ffi, library

Function = Literal[
    "exp", "log", "tanh", "sigmoid", "erf", "gelu", "gelu_tanh", "silu", "hard_sigmoid", "hard_swish", "relu", "clip",
    "leaky_relu", "affine", "sqrt", "reciprocal",
]  # fmt: skip
FUNCTIONS = {name: code for code, name in enumerate(Function.__args__)}  # type: ignore[attr-defined]
PARAMETERS = {"silu": 1, "hard_sigmoid": 2, "clip": 2, "leaky_relu": 1, "affine": 3}
OPERATIONS = {"add": 0, "sub": 1, "mul": 2, "div": 3}
REDUCTIONS = {"sum": 0, "mean": 1, "max": 2, "min": 3, "sum_square": 4}
BINS = 1 << 16
BINARY_AXES = 4
MOST_AXES = 6


def _float32(x: Array, what: str) -> Array:
    if x.dtype != np.float32:
        raise NativeError(f"{what} is of type {x.dtype}; this kernel takes float32")
    return contiguous(x, what)


def map_elements(
    function: Function, x: Array, parameters: Sequence[float] = (), *, out: Array | None = None, threads: int = 0
) -> Array:
    """f(x) for every element; `parameters` as `enum pumice_function` in csrc/rows/api.h lists them.

    Raises:
        NativeError: x is not float32, a parameter is missing, or `out` overlaps x or does not fit.
    """
    if out is None and not x.flags.c_contiguous and (turned := in_memory_order(x)) is not None:
        return map_elements(function, turned[0], parameters, threads=threads).transpose(turned[1])
    x = _float32(x, "x")
    if len(parameters) != PARAMETERS.get(function, 0):
        raise NativeError(f"{function} takes {PARAMETERS.get(function, 0)} parameters, not {len(parameters)}")
    out = _output(out, x.shape, x)
    values = ffi().new("float[]", list(parameters)) if parameters else ffi().NULL
    check(library().pumice_map(FUNCTIONS[function], pointer(x), pointer(out), x.size, values, threads), function)
    return out


def _output(out: Array | None, shape: tuple[int, ...], *operands: Array) -> Array:
    if out is None:
        return empty(shape)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise NativeError(f"`out` must be a contiguous float32 array of shape {list(shape)}")
    refuse_overlap(out, *operands)
    return out


def batch_norm(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float = 1e-5, *, threads: int = 0
) -> Array:
    """(x - mean) scale / sqrt(var + epsilon) + bias, channels on axis 1.

    Raises:
        NativeError: types or shapes do not fit.
    """
    x, channels = _float32(x, "x"), x.shape[1] if x.ndim > 1 else 1
    stored = [_float32(v, "a statistic").reshape(-1) for v in (scale, bias, mean, var)]
    if any(v.size != channels for v in stored):
        raise NativeError(f"the statistics have {[v.size for v in stored]} elements for {channels} channels")
    out = empty(x.shape)
    status = library().pumice_batch_norm(
        pointer(x), pointer(out), x.shape[0], channels, math.prod(x.shape[2:]), *map(pointer, stored), epsilon, threads
    )
    check(status, f"batch normalisation of {list(x.shape)}")
    return out


# --- two operands -----------------------------------------------------------------------------------------------------


def binary(operation: Literal["add", "sub", "mul", "div"], a: Array, b: Array, *, threads: int = 0) -> Array:
    """a op b after broadcasting; operands are read in place wherever their last axis is contiguous or repeats.

    Raises:
        NativeError: an operand is not float32, or the shapes do not broadcast to at most four merged axes.
    """
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise NativeError(f"operands are of types {a.dtype} and {b.dtype}; this kernel takes float32")
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    larger = a if a.size >= b.size else b
    if not larger.flags.c_contiguous and larger.shape == shape and (turned := in_memory_order(larger)) is not None:
        order = np.argsort(turned[1])
        a, b = (x.reshape((1,) * (len(shape) - x.ndim) + x.shape).transpose(order) for x in (a, b))
        return binary(operation, a, b, threads=threads).transpose(turned[1])
    out = empty(shape)
    if out.size == 0:
        return out
    merged = _merged(a.shape, b.shape)
    if merged is None:
        raise NativeError(f"{list(a.shape)} and {list(b.shape)} broadcast in more than {BINARY_AXES} separate axes")
    a, b = contiguous(a, "a"), contiguous(b, "b")
    extents, a_steps, b_steps = merged
    status = library().pumice_binary(
        OPERATIONS[operation], pointer(a), a_steps, pointer(b), b_steps, pointer(out), extents, threads
    )
    check(status, operation)
    return out


def _steps(shape: tuple[int, ...], rank: int) -> list[int]:
    padded = (1,) * (rank - len(shape)) + shape
    steps, step = [], 1
    for extent in reversed(padded):
        steps.append(0 if extent == 1 else step)
        step *= extent
    return steps[::-1]


@functools.lru_cache(maxsize=1024)
def _merged(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Any, Any, Any] | None:
    """Shape and steps over four axes, neighbours joined where both operands run on; None if there are more."""
    shape = np.broadcast_shapes(a, b)
    joined: list[list[int]] = []
    for extent, p, q in zip(shape, _steps(a, len(shape)), _steps(b, len(shape)), strict=True):
        if extent == 1:
            continue
        if joined and joined[-1][1] == p * extent and joined[-1][2] == q * extent:
            joined[-1] = [joined[-1][0] * extent, p, q]
        else:
            joined.append([extent, p, q])
    if len(joined) > BINARY_AXES:
        return None
    joined = [[1, 0, 0]] * (BINARY_AXES - len(joined)) + joined
    extents, a_steps, b_steps = (ffi().new("int64_t[4]", list(column)) for column in zip(*joined, strict=True))
    return extents, a_steps, b_steps


def mergeable(a: Array, b: Array) -> bool:
    """Whether `binary` can broadcast these shapes."""
    return a.shape == b.shape or _merged(a.shape, b.shape) is not None


# --- rows -------------------------------------------------------------------------------------------------------------


def softmax(x: Array, *, logarithm: bool = False, out: Array | None = None, threads: int = 0) -> Array:
    """Softmax over the last axis, or its logarithm.

    Raises:
        NativeError: x is not float32, or `out` overlaps it or does not fit.
    """
    x = _float32(x, "x")
    out = _output(out, x.shape, x)
    if x.size:
        columns = x.shape[-1]
        status = library().pumice_softmax(pointer(x), pointer(out), x.size // columns, columns, int(logarithm), threads)
        check(status, f"softmax of {list(x.shape)}")
    return out


def layer_norm(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    epsilon: float = 1e-5,
    *,
    columns: int | None = None,
    rms: bool = False,
    statistics: bool = False,
    out: Array | None = None,
    threads: int = 0,
) -> tuple[Array, Array | None, Array | None]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over rows of `columns` elements; `rms` leaves out the mean.

    Returns:
        The result, and with `statistics` the mean and 1 / sqrt(var + epsilon) of every row.

    Raises:
        NativeError: x is not float32, scale or bias have not `columns` elements, or `out` overlaps x or does not fit.
    """
    x = _float32(x, "x")
    columns = x.shape[-1] if columns is None else columns
    flat = [None if v is None else _float32(v, "scale or bias").reshape(-1) for v in (scale, bias)]
    if any(v is not None and v.size != columns for v in flat):
        raise NativeError(f"scale and bias must have {columns} elements, as many as a row")
    out, count = _output(out, x.shape, x), x.size // max(columns, 1)
    mean, inverse = (empty(count), empty(count)) if statistics else (None, None)
    if x.size:
        status = library().pumice_layer_norm(
            pointer(x), pointer(out), count, columns, pointer(flat[0]), pointer(flat[1]), epsilon, int(rms),
            pointer(mean), pointer(inverse), threads,
        )  # fmt: skip
        check(status, f"normalisation of {list(x.shape)}")
    return out, mean, inverse


def reduce(
    reduction: Literal["sum", "mean", "max", "min", "sum_square"],
    x: Array,
    axes: Sequence[int],
    *,
    keepdims: bool = True,
    threads: int = 0,
) -> Array:
    """A reduction over neighbouring axes, none of them empty.

    Raises:
        NativeError: x is not float32, or the axes are not neighbours, or empty.
    """
    axes = sorted(a % x.ndim for a in axes)
    if list(axes) != list(range(axes[0], axes[-1] + 1)) or 0 in x.shape:
        raise NativeError(f"reduction of {list(x.shape)} over axes {list(axes)}: they must be neighbours and not empty")
    x, first, last = _float32(x, "x"), axes[0], axes[-1]
    kept = tuple(1 if first <= i <= last else extent for i, extent in enumerate(x.shape))
    out = empty(kept if keepdims else kept[:first] + kept[last + 1 :])
    status = library().pumice_reduce(
        REDUCTIONS[reduction], pointer(x), pointer(out), math.prod(x.shape[:first]),
        math.prod(x.shape[first : last + 1]), math.prod(x.shape[last + 1 :]), threads,
    )  # fmt: skip
    check(status, f"reduction of {list(x.shape)}")
    return out


def transpose(x: Array, axes: Sequence[int], *, threads: int = 0) -> Array:
    """The permuted array in C order, for elements of 1, 2, 4 or 8 bytes and up to six axes. x is read in place.

    Raises:
        NativeError: another element size, more axes, or strides that are no whole elements.
    """
    view = x.transpose(axes)
    size = x.itemsize
    if size not in {1, 2, 4, 8} or x.ndim > MOST_AXES or any(s < 0 or s % size for s in view.strides):
        raise NativeError(f"an array of {x.dtype}{list(x.shape)} has no transposition kernel")
    out = empty(view.shape, x.dtype)
    steps = [s // size for s in view.strides]
    data = ffi().cast("void *", x.__array_interface__["data"][0])
    target = ffi().cast("void *", out.__array_interface__["data"][0])
    new = ffi().new
    status = library().pumice_transpose(
        data, target, size, x.ndim, new("int64_t[]", list(view.shape)), new("int64_t[]", steps), threads
    )
    check(status, f"transposing {list(x.shape)}")
    return out


# --- quantization -----------------------------------------------------------------------------------------------------


def parameters_along(
    scale: Any, zero: Any, shape: tuple[int, ...], axis: int | None
) -> tuple[Array, Array, int, int, int]:
    """Scales and zero points, one each or one a place of the axis, and the shape as (outer, places, inner).

    Raises:
        NativeError: the scales do not fit the axis.
    """
    scales = np.ascontiguousarray(scale, np.float32).reshape(-1)
    zeros = np.ascontiguousarray(
        np.broadcast_to(np.asarray(0 if zero is None else zero, np.int32).reshape(-1), scales.shape)
    )
    if scales.size == 1:
        return scales, zeros, 1, 1, math.prod(shape)
    if axis is None or scales.size != shape[axis]:
        raise NativeError(f"{scales.size} scales do not fit axis {axis} of shape {list(shape)}")
    axis %= len(shape)
    return scales, zeros, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def quantize(
    x: Array,
    scale: Any,
    zero: Any = None,
    dtype: Any = np.uint8,
    *,
    axis: int | None = None,
    low: int | None = None,
    high: int | None = None,
    threads: int = 0,
) -> Array:
    """clamp(round_to_even(x / scale) + zero, low, high) as uint8 or int8.

    ReLU and Clip before a quantization are tighter bounds: `low=zero` for ReLU.

    Args:
        x: float32, of any shape.
        scale: one, or one per index of `axis`.
        zero: the same; 0 if it is left out.
        dtype: uint8 or int8.
        axis: along which the parameters go.
        low: least stored value; the type's own by default.
        high: greatest stored value; the type's own by default.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: types or shapes do not fit.
    """
    x, kind = _float32(x, "x"), np.dtype(dtype)
    if kind not in (np.uint8, np.int8):
        raise NativeError(f"quantization to {kind} has no kernel; use uint8 or int8")
    limits = np.iinfo(kind)
    scales, zeros, outer, channels, inner = parameters_along(scale, zero, x.shape, axis)
    out = empty(x.shape, kind)
    status = library().pumice_quantize(
        pointer(x), pointer(out), int(kind == np.int8), outer, channels, inner, pointer(scales), pointer(zeros),
        limits.min if low is None else low, limits.max if high is None else high, threads,
    )  # fmt: skip
    check(status, f"quantizing {list(x.shape)}")
    return out


def dequantize(q: Array, scale: Any, zero: Any = None, *, axis: int | None = None, threads: int = 0) -> Array:
    """(q - zero) scale as float32, for uint8 or int8.

    Raises:
        NativeError: types or shapes do not fit.
    """
    if q.dtype not in (np.uint8, np.int8):
        raise NativeError(f"dequantization of {q.dtype} has no kernel; use uint8 or int8")
    q = contiguous(q, "q")
    scales, zeros, outer, channels, inner = parameters_along(scale, zero, q.shape, axis)
    out = empty(q.shape)
    status = library().pumice_dequantize(
        pointer(q),
        int(q.dtype == np.int8),
        pointer(out),
        outer,
        channels,
        inner,
        pointer(scales),
        pointer(zeros),
        threads,
    )
    check(status, f"dequantizing {list(q.shape)}")
    return out


# --- calibration and clustering ---------------------------------------------------------------------------------------


def value_range(x: Array, *, threads: int = 0) -> tuple[np.float32, np.float32]:
    """The least and the greatest value; NaN if there is one.

    Raises:
        NativeError: x is empty or not float32.
    """
    x, found = _float32(x, "x"), np.empty(2, np.float32)
    check(library().pumice_range(pointer(x), x.size, pointer(found), threads), f"the range of {list(x.shape)}")
    return found[0], found[1]


def histogram(x: Array, counts: Array | None = None, *, threads: int = 0) -> Array:
    """Adds to `counts`, int64 [65536], how many values have each pattern of upper 16 bits: each bfloat16 is a bin.

    Raises:
        NativeError: x is not float32, or `counts` are not such counters.
    """
    x = _float32(x, "x")
    counts = np.zeros(BINS, np.int64) if counts is None else counts
    if counts.dtype != np.int64 or counts.shape != (BINS,) or not counts.flags.c_contiguous:
        raise NativeError(f"counts must be int64 of shape [{BINS}]")
    check(library().pumice_histogram(pointer(x), x.size, pointer(counts), threads), f"a histogram of {list(x.shape)}")
    return counts


def nearest(points: Array, centroids: Array, *, threads: int = 0) -> Array:
    """Index of the nearest centroid (squared distance, the first of equals) of each point, as int32.

    Args:
        points: (n,), or (n, width).
        centroids: (k,), or (k, width).
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: types or widths do not fit.
    """
    points, centroids = _float32(points, "points"), _float32(centroids, "centroids")
    width = points.shape[1] if points.ndim == 2 else 1
    if centroids.ndim != points.ndim or (points.ndim == 2 and centroids.shape[1] != width):
        raise NativeError(f"points {list(points.shape)} and centroids {list(centroids.shape)} differ in width")
    out = empty(len(points), np.int32)
    status = library().pumice_nearest(
        pointer(points), len(points), width, pointer(centroids), len(centroids), pointer(out), threads
    )
    check(status, f"assigning {len(points)} points to {len(centroids)} centroids")
    return out
