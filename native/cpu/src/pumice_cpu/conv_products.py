"""Convolutions whose weights are new in every step, as matrix products of the weights where they lie.

With the windows of x as columns C, (channel, tap) by (image, output), and the weights as a matrix W, filters by
(channel, tap):

    Y = W C        dW = dY C'        dC = W' dY, of which dx is the adjoint of taking windows

Nothing is packed but the smaller operand, while `ConvF32` rearranges all weights first: it is the quicker one where
pixels are many and weights few, or where weights stay.
"""

from __future__ import annotations

import math

import attrs

from pumice.ops.window import Window
from pumice_cpu.arrays import Array, contiguous, empty, pointer
from pumice_cpu.conv_u8 import shape_struct
from pumice_cpu.gemm import product
from pumice_cpu.native import check, library
from pumice_cpu.rows import transpose

COLUMNS_PER_WEIGHT = 8
"""Elements of C for each of W beyond which making C costs more than packing W, as measured."""


def worthwhile(x: Array, w: Array, window: Window) -> bool:
    """Whether the products are quicker than a packed convolution; there is none for groups, or without images."""
    columns = x.shape[1] * math.prod(window.kernel) * len(x) * math.prod(window.output)
    return bool(x.shape[1] == w.shape[1] and 0 < columns <= COLUMNS_PER_WEIGHT * w.size)


def convolve(x: Array, w: Array, window: Window) -> Array:
    """(batch, channels, *size) to (batch, filters, *output) by weights (filters, channels, *kernel)."""
    y = product(_matrix(w), columns(x, window))
    return transpose(y.reshape(len(w), len(x), -1), (1, 0, 2)).reshape(len(x), len(w), *window.output)


def input_gradient(w: Array, dy: Array, window: Window) -> Array:
    """dx (batch, channels, *size) from dy (batch, filters, *output)."""
    rows = product(_by_filter(dy).T, _matrix(w))  # dC', so that the weights are the operand with rows of its own
    return from_columns(transpose(rows, (1, 0)), len(dy), w.shape[1], window)


def weight_gradient(x: Array, dy: Array, window: Window) -> Array:
    """dW (filters, channels, *kernel)."""
    dw = product(_by_filter(dy), columns(x, window).T)
    return dw.reshape(dy.shape[1], x.shape[1], *window.kernel)


def columns(x: Array, window: Window) -> Array:
    """The windows of x (batch, channels, *size): (channels x taps, batch x outputs)."""
    x, channels, window = contiguous(x, "the input of the convolution"), x.shape[1], _flat(window)
    found = empty((channels * math.prod(window.kernel), len(x) * math.prod(window.output)))
    shape = shape_struct(window, channels, channels, 1)
    check(library().pumice_conv_columns(shape, len(x), pointer(x), pointer(found), 0), "taking windows")
    return found


def from_columns(found: Array, batch: int, channels: int, window: Window) -> Array:
    """The adjoint of `columns`: each element of x is the sum of what all windows hold of it."""
    x, flat = empty((batch, channels, *window.size)), _flat(window)
    shape = shape_struct(flat, channels, channels, 1)
    check(library().pumice_conv_from_columns(shape, batch, pointer(found), pointer(x), 0), "adding up windows")
    return x


def _matrix(w: Array) -> Array:
    return w.reshape(len(w), -1)


def _by_filter(dy: Array) -> Array:
    """(filters, batch x outputs)."""
    return transpose(dy.reshape(*dy.shape[:2], -1), (1, 0, 2)).reshape(dy.shape[1], -1)


def _flat(window: Window) -> Window:
    """One axis instead of several where every window is an element of the image and the image all of them."""
    if window.size != window.output or max(*window.kernel, *window.strides) > 1:
        return window
    pixels, one, zero = (math.prod(window.size),), (1,), (0,)
    return attrs.evolve(
        window, size=pixels, output=pixels, kernel=one, strides=one, dilations=one, before=zero, after=zero
    )
