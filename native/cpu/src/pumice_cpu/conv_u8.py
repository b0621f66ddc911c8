"""8-bit convolution, channels last, over one to three spatial axes: packed once, run often.

sums[p, n] = bias[n] + sum over taps t, channels c of (x[p + t, c] - zx) w[n, c, t]        (padding counts as zx)
levels     = round half to even(clamp(sums * m[n] + (r - zr) mr, low, high)) + zy
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from pumice.ops.window import Window
from pumice_cpu import arrays
from pumice_cpu.arrays import Array
from pumice_cpu.native import NativeError, check, ffi, library

MOST_AXES = 3


def shape_struct(window: Window, channels: int, filters: int, groups: int) -> Any:
    """`struct pumice_conv_shape` of a window over up to three axes; leading axes of length 1 are added."""
    rank = len(window.size)
    if rank > MOST_AXES:
        raise NativeError(f"a convolution over {rank} axes cannot run in C; at most {MOST_AXES} can")
    fill: tuple[int, ...] = (1,) * (MOST_AXES - rank)
    shape = ffi().new("struct pumice_conv_shape *")
    shape.channels, shape.filters, shape.groups = channels, filters, groups
    shape.size, shape.kernel, shape.output = fill + window.size, fill + window.kernel, fill + window.output
    shape.stride, shape.dilation = fill + window.strides, fill + window.dilations
    shape.before = (0,) * (MOST_AXES - rank) + window.before
    return shape


@attrs.frozen(kw_only=True)
class Requantize:
    """How int32 sums become levels of 8 bits."""

    multiplier: Array
    """float32, one a filter: input scale * weight scale / output scale."""
    zero_point: Array
    """uint8 or int8 scalar; its type is the type of the result."""
    low: float | None = None
    """Bounds before the zero point is added, for activations; None means the bounds of the type."""
    high: float | None = None
    residual: Array | None = None
    """Added before rounding: uint8 or int8 (batch, *output, filters)."""
    residual_multiplier: float = 0.0
    """residual scale / output scale."""
    residual_zero_point: int = 0
    table: Array | None = None
    """256 levels of the result's type, indexed by the level's byte, that replace the levels."""


class ConvU8:
    """A packed convolution; weights (filters, channels / groups, *kernel) have their zero point off: -255..255."""

    def __init__(
        self, weights: Array, window: Window, *, groups: int = 1, bias: Array | None = None, zero_point: int = 0,
        signed: bool = False,
    ) -> None:  # fmt: skip
        filters, each = weights.shape[:2]
        levels = np.ascontiguousarray(weights, np.int16)
        bias = None if bias is None else np.ascontiguousarray(bias, np.int32)
        shape = shape_struct(window, each * groups, filters, groups)
        self.window, self.filters, self.channels, self.signed = window, filters, each * groups, signed
        self._conv = library().pumice_conv_u8_create(
            shape, ffi().cast("int16_t *", levels.ctypes.data), arrays.pointer(bias), zero_point, signed
        )
        if self._conv == ffi().NULL:
            raise NativeError("the 8-bit convolution cannot be packed: its shapes do not fit each other; check them")
        weakref.finalize(self, library().pumice_conv_u8_free, self._conv)

    def levels(self, x: Array, how: Requantize, *, threads: int = 0, out: Array | None = None) -> Array:
        """(batch, *size, channels) levels to (batch, *output, filters) levels.

        Raises:
            NativeError: the arrays do not fit the convolution, or `out` overlaps one of them.
        """
        x = arrays.contiguous(x, "the input of the convolution")
        if out is None:
            out = arrays.empty((len(x), *self.window.output, self.filters), how.zero_point.dtype)
        self.bound(x, how, out, threads=threads)()
        return out

    def bound(self, x: Array, how: Requantize, out: Array, *, threads: int = 0) -> Callable[[], None]:
        """`levels` on these very arrays as a call without arguments, for layers that run again and again.

        Raises:
            NativeError: the arrays do not fit the convolution, or `out` overlaps one of them.
        """
        self._check(x, out, how.zero_point.dtype)
        residual = how.residual
        if residual is not None and (residual.shape != out.shape or not residual.flags.c_contiguous):
            raise NativeError(f"the residual is {residual.shape}, but the result of the convolution {out.shape}")
        arrays.refuse_overlap(out, x, residual)
        multiplier = np.ascontiguousarray(np.broadcast_to(how.multiplier, (self.filters,)), np.float32)
        epilogue = _levels_epilogue(how, multiplier)
        run, conv, batch = library().pumice_conv_u8_run, self._conv, len(x)
        source, target = as_bytes(x), ffi().cast("void *", as_bytes(out))

        def call(_alive: Any = (self, x, out, how, multiplier)) -> None:
            check(run(conv, batch, source, target, epilogue, threads), "the 8-bit convolution")

        return call

    def sums(self, x: Array, *, threads: int = 0) -> Array:
        """(batch, *size, channels) levels to (batch, *output, filters) int32."""
        x = arrays.contiguous(x, "the input of the convolution")
        out = arrays.empty((len(x), *self.window.output, self.filters), np.int32)
        self._check(x, out, out.dtype)
        epilogue = ffi().new("struct pumice_conv_u8_epilogue *")
        epilogue.result = library().PUMICE_CONV_SUMS
        target = ffi().cast("void *", arrays.pointer(out))
        check(
            library().pumice_conv_u8_run(self._conv, len(x), as_bytes(x), target, epilogue, threads), "the convolution"
        )
        return out

    def _check(self, x: Array, out: Array, dtype: np.dtype[Any]) -> None:
        expected = np.dtype(np.int8 if self.signed else np.uint8)
        if x.shape[1:] != (*self.window.size, self.channels) or x.dtype != expected or not x.flags.c_contiguous:
            raise NativeError(
                f"the 8-bit convolution takes contiguous {expected} (batch, {self.window.size}, {self.channels}), "
                f"not {x.dtype}{list(x.shape)}"
            )
        if out.shape != (len(x), *self.window.output, self.filters) or out.dtype != dtype or not out.flags.c_contiguous:
            raise NativeError(f"the result of the 8-bit convolution does not fit {out.dtype}{list(out.shape)}")


def _levels_epilogue(how: Requantize, multiplier: Array) -> Any:
    info, zero, residual = np.iinfo(how.zero_point.dtype), int(how.zero_point), how.residual
    epilogue = ffi().new("struct pumice_conv_u8_epilogue *")
    epilogue.result, epilogue.multiplier = library().PUMICE_CONV_LEVELS, arrays.pointer(multiplier)
    epilogue.low = max(info.min - zero, -math.inf if how.low is None else how.low)
    epilogue.high = min(info.max - zero, math.inf if how.high is None else how.high)
    epilogue.zero_point, epilogue.is_signed = zero, how.zero_point.dtype == np.int8
    epilogue.residual, epilogue.residual_multiplier = as_bytes(residual), how.residual_multiplier
    epilogue.residual_zero_point = how.residual_zero_point
    epilogue.residual_signed = residual is not None and residual.dtype == np.int8
    epilogue.table = as_bytes(how.table)
    return epilogue


def as_bytes(array: Array | None) -> Any:
    """The array's memory as unsigned bytes."""
    return ffi().NULL if array is None else ffi().cast("uint8_t *", array.__array_interface__["data"][0])
