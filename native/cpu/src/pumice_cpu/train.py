"""Training in C: gradients of pointwise functions, normalisations and maxima of windows, and the update of weights, for
float32.

Sums over a batch are taken in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pumice.ops.window import Window
from pumice_cpu.arrays import Array, contiguous, empty, pointer
from pumice_cpu.conv_u8 import as_bytes, shape_struct
from pumice_cpu.native import NativeError, check, ffi, library
from pumice_cpu.rows import parameters_along

SLOPES = {"relu": 0, "clip": 1, "sigmoid": 2, "tanh": 3, "erf": 4, "gelu": 5}


def slope(
    function: Literal["relu", "clip", "sigmoid", "tanh", "erf", "gelu"],
    dy: Array,
    v: Array,
    parameters: Sequence[float] = (),
    *,
    threads: int = 0,
) -> Array:
    """dy f'(x), elementwise; v is the result y of relu, sigmoid and tanh, the input x of the others.

    Raises:
        NativeError: the shapes differ.
    """
    if dy.shape != v.shape:
        raise NativeError(f"a gradient of shape {list(dy.shape)} does not fit values of shape {list(v.shape)}")
    dy, v = contiguous(dy, "dy"), contiguous(v, "v")
    dx, given = empty(v.shape), np.asarray(parameters, np.float32)
    status = library().pumice_slope(
        SLOPES[function], pointer(dy), pointer(v), pointer(dx), v.size, pointer(given), threads
    )
    check(status, "the gradient of a pointwise function")
    return dx


def batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, *, threads: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Normalised (batch, channels, ...), and each channel's mean, variance and 1 / sqrt(variance + epsilon)."""
    x, count = contiguous(x, "x"), x.shape[1]
    scale, bias = (np.ascontiguousarray(v, np.float32) for v in (scale, bias))
    y, (mean, variance, inverse) = empty(x.shape), (empty(count) for _ in range(3))
    status = library().pumice_batch_norm_train(
        pointer(x), pointer(y), len(x), count, math.prod(x.shape[2:]), pointer(scale), pointer(bias), epsilon,
        pointer(mean), pointer(variance), pointer(inverse), threads,
    )  # fmt: skip
    check(status, "batch normalisation")
    return y, mean, variance, inverse


def batch_norm_gradient(
    x: Array, dy: Array, scale: Array, mean: Array, inverse: Array, *, threads: int = 0
) -> tuple[Array, Array, Array]:
    """dx, dscale and dbias of a normalisation by the statistics of the batch."""
    x, dy, count = contiguous(x, "x"), contiguous(dy, "dy"), x.shape[1]
    scale, mean, inverse = (np.ascontiguousarray(v, np.float32) for v in (scale, mean, inverse))
    dx, dscale, dbias = empty(x.shape), empty(count), empty(count)
    status = library().pumice_batch_norm_gradient(
        pointer(x), pointer(dy), pointer(dx), len(x), count, math.prod(x.shape[2:]), pointer(scale), pointer(mean),
        pointer(inverse), pointer(dscale), pointer(dbias), threads,
    )  # fmt: skip
    check(status, "the gradient of batch normalisation")
    return dx, dscale, dbias


def layer_norm_gradient(
    x: Array, dy: Array, scale: Array, epsilon: float, *, threads: int = 0
) -> tuple[Array, Array, Array]:
    """dx, dscale and dbias of layer normalisation over rows as long as `scale`."""
    x, dy, scale = contiguous(x, "x"), contiguous(dy, "dy"), contiguous(scale, "scale")
    dx, dscale, dbias = empty(x.shape), empty(scale.shape), empty(scale.shape)
    status = library().pumice_layer_norm_gradient(
        pointer(x), pointer(dy), pointer(dx), x.size // scale.size, scale.size, pointer(scale), epsilon,
        pointer(dscale), pointer(dbias), threads,
    )  # fmt: skip
    check(status, "the gradient of layer normalisation")
    return dx, dscale, dbias


def softmax_gradient(y: Array, dy: Array, *, threads: int = 0) -> Array:
    """y (dy - sum of dy y) along the last axis."""
    y, dy = contiguous(y, "y"), contiguous(dy, "dy")
    dx, columns = empty(y.shape), y.shape[-1]
    status = library().pumice_softmax_gradient(
        pointer(y), pointer(dy), pointer(dx), y.size // columns, columns, threads
    )
    check(status, "the gradient of softmax")
    return dx


def max_pool_gradient(x: Array, y: Array, dy: Array, window: Window, *, threads: int = 0) -> Array:
    """dx of the maxima y of the windows of x: each to the first element that equals it."""
    x, y, dy = contiguous(x, "x"), contiguous(y, "y"), contiguous(dy, "dy")
    dx, channels = empty(x.shape), x.shape[1]
    shape = shape_struct(window, channels, channels, channels)
    status = library().pumice_max_pool_gradient(
        shape, len(x), pointer(x), pointer(y), pointer(dy), pointer(dx), threads
    )
    check(status, "the gradient of the pooling")
    return dx


def quantize_gradient(
    x: Array, dq: Array, scale: Array, zero: Array | None, bounds: tuple[int, int], *, axis: int, threads: int = 0
) -> tuple[Array, Array]:
    """dx and dscale of QuantizeLinear, whose rounding counts as the identity and whose bounds saturate.

    Raises:
        NativeError: the scales do not fit the axis.
    """
    x, dq = contiguous(x, "x"), contiguous(dq, "dq")
    scales, zeros, *extents = parameters_along(scale, zero, x.shape, axis)
    dx, dscale = empty(x.shape), empty(scale.shape)
    status = library().pumice_quantize_gradient(
        pointer(x), pointer(dq), pointer(dx), *extents, pointer(scales), pointer(zeros), *bounds, pointer(dscale),
        threads,
    )  # fmt: skip
    check(status, "the gradient of quantization")
    return dx, dscale


def dequantize_gradient(
    q: Array, dy: Array, scale: Array, zero: Array | None, *, axis: int, threads: int = 0
) -> tuple[Array, Array]:
    """dq and dscale of DequantizeLinear, for uint8 or int8.

    Raises:
        NativeError: the scales do not fit the axis.
    """
    q, dy = contiguous(q, "q"), contiguous(dy, "dy")
    scales, zeros, *extents = parameters_along(scale, zero, q.shape, axis)
    dq, dscale = empty(q.shape), empty(scale.shape)
    status = library().pumice_dequantize_gradient(
        as_bytes(q), int(q.dtype == np.int8), pointer(dy), pointer(dq), *extents, pointer(scales), pointer(zeros),
        pointer(dscale), threads,
    )  # fmt: skip
    check(status, "the gradient of dequantization")
    return dq, dscale


def adaptive(w: Array, g: Array, p: Array, q: Array, **numbers: float) -> object:
    """Move a weight and its moments in place, as `pumice.train.optimizers` has it; NotImplemented for other types.

    Args:
        w: the weight.
        g: its gradient, of any strides.
        p: the mean of the gradients so far.
        q: the mean of their squares.
        numbers: the fields of `struct pumice_adaptive`.
    """
    if any(v.dtype != np.float32 for v in (w, g, p, q)) or not all(v.flags.c_contiguous for v in (w, p, q)):
        return NotImplemented
    g = contiguous(g, "the gradient")
    struct = ffi().new("struct pumice_adaptive *", numbers)
    status = library().pumice_adaptive_update(struct, pointer(w), pointer(g), pointer(p), pointer(q), w.size, 0)
    check(status, "the update of weights")
    return None


def is_finite(g: Array) -> bool:
    """Whether every element is a finite number. Infinities and NaN survive in sums, which are quicker to take."""
    quick = g.dtype == np.float32 and g.flags.c_contiguous and library().pumice_sums_finite(pointer(g), g.size, 0)
    return bool(quick) or bool(np.isfinite(g).all())
