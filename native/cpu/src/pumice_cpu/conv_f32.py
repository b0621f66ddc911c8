"""Float convolution, channels first, over one to three spatial axes, with its gradients.

    y[n, m, o] = b[m] + sum over channels c, taps t of w[m, c, t] x[n, c, o s + t d - p]

`ConvF32` holds packed weights; `transposed=True` is the adjoint (ConvTranspose), which with the convolution's own
weights is the gradient with respect to its input.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from pumice.ops.window import Window
from pumice_cpu import arrays
from pumice_cpu.arrays import Array
from pumice_cpu.conv_u8 import shape_struct
from pumice_cpu.native import NativeError, check, ffi, library


class ConvF32:
    """A packed convolution, or the adjoint of one.

    Args:
        weights: (filters, channels / groups, *kernel); transposed: (channels, filters / groups, *kernel).
        window: where taps fall; transposed: `size` is that of the inputs, `output` that of the results, and inputs o
            are spread over results o s + t d - before.
    """

    def __init__(self, weights: Array, window: Window, *, groups: int = 1, transposed: bool = False) -> None:
        first, second = weights.shape[:2]
        self.channels, self.filters = (first, second * groups) if transposed else (second * groups, first)
        self.window = window
        weights = np.ascontiguousarray(weights, np.float32)
        shape = shape_struct(window, self.channels, self.filters, groups)
        self._conv = library().pumice_conv_f32_create(shape, transposed, arrays.pointer(weights))
        if self._conv == ffi().NULL:
            raise NativeError("the convolution cannot be packed: its shapes do not fit each other; check them")
        weakref.finalize(self, library().pumice_conv_f32_free, self._conv)
        self._input, self._output = (self.channels, *window.size), (self.filters, *window.output)
        self._plain: tuple[Array | None, Any, Any] = (None, *_epilogue(None, None, -math.inf, math.inf))

    def __call__(
        self, x: Array, bias: Array | None = None, *, residual: Array | None = None, low: float = -math.inf,
        high: float = math.inf, threads: int = 0,
    ) -> Array:  # fmt: skip
        """(batch, channels, *size) to (batch, filters, *output); the residual is added, then the result is bounded."""
        if x.shape[1:] != self._input:
            raise NativeError(f"the convolution takes (batch, {self.channels}, {self.window.size}), not {x.shape}")
        x = arrays.contiguous(x, "the input of the convolution")
        y = arrays.empty((len(x), *self._output))
        if residual is None and low == -math.inf and high == math.inf:
            epilogue, alive = self._plain_epilogue(bias)
        else:
            epilogue, alive = _epilogue(bias, residual, low, high)
        status = library().pumice_conv_f32_run(self._conv, len(x), _reals(x), _reals(y), epilogue, threads)
        del alive
        check(status, "the convolution")
        return y

    def _plain_epilogue(self, bias: Array | None) -> tuple[Any, Any]:
        """Kept for the bias of the last call, which seldom changes."""
        last, epilogue, alive = self._plain
        if last is not bias:
            epilogue, alive = _epilogue(bias, None, -math.inf, math.inf)
            self._plain = (bias, epilogue, alive)
        return epilogue, alive


def _reals(array: Array) -> Any:
    """A pointer to a contiguous float32 array; quicker than `arrays.pointer`, which takes any."""
    return ffi().from_buffer("float[]", array)


def _epilogue(bias: Array | None, residual: Array | None, low: float, high: float) -> tuple[Any, Any]:
    """`struct pumice_conv_f32_epilogue`, and what must live as long as it."""
    bias = None if bias is None else arrays.contiguous(bias, "the bias of the convolution")
    residual = None if residual is None else arrays.contiguous(residual, "the residual")
    epilogue = ffi().new("struct pumice_conv_f32_epilogue *")
    epilogue.bias, epilogue.residual = arrays.pointer(bias), arrays.pointer(residual)
    epilogue.low, epilogue.high = low, high
    return epilogue, (bias, residual)


def weight_gradient(x: Array, dy: Array, window: Window, *, groups: int = 1, threads: int = 0) -> Array:
    """The gradient with respect to the weights (filters, channels / groups, *kernel), given that of the result."""
    x = arrays.contiguous(x, "the input of the convolution")
    dy = arrays.contiguous(dy, "the gradient of the convolution")
    dw = arrays.empty((dy.shape[1], x.shape[1] // groups, *window.kernel))
    shape = shape_struct(window, x.shape[1], dy.shape[1], groups)
    status = library().pumice_conv_f32_weight_gradient(
        shape, len(x), arrays.pointer(x), arrays.pointer(dy), arrays.pointer(dw), threads
    )
    check(status, "the gradient of the convolution's weights")
    return dw
