"""Float convolutions and matrix products with channels last, and what follows them, in one pass.

    v = sum + bias, [+ residual], v = function(v) or bounded, [+ residual]

`Product` holds packed weights. Images keep ONNX's axes (batch, channels, *size); what is last is channels *in memory*:
results are transposed views, which the next product reads as they are, and which any NumPy function takes.

Where the level in force has tiles of bfloat16 (AMX), float32 operands are split into two bfloat16 each and multiplied
three times, which leaves an error of at most 2^-16 of the sum of |x w|. Where an operand is infinite or NaN all is
computed again in float32, as other levels do from the first.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.window import Window
from pumice_cpu.arrays import Array, empty, pointer
from pumice_cpu.conv_u8 import shape_struct
from pumice_cpu.native import NativeError, check, ffi, library
from pumice_cpu.rows import FUNCTIONS, Function

MOST_AXES = 2


@attrs.frozen(kw_only=True, eq=False)
class Finish:
    """What becomes of the sums; made once, as its struct is."""

    bias: Array | None = None
    """float32, one a filter."""
    function: Function | None = None
    parameters: Sequence[float] = ()
    low: float = -math.inf
    high: float = math.inf
    late: bool = False
    """The residual is added last."""
    struct: Any = attrs.field(init=False)
    _alive: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        struct = ffi().new("struct pumice_nhwc_epilogue *")
        bias = None if self.bias is None else np.ascontiguousarray(self.bias, np.float32)
        parameters = ffi().new("float[]", list(self.parameters) or [0.0])
        struct.bias, struct.late, struct.parameters = pointer(bias), self.late, parameters
        struct.function = -1 if self.function is None else FUNCTIONS[self.function]
        struct.low, struct.high = self.low, self.high
        object.__setattr__(self, "struct", struct)
        object.__setattr__(self, "_alive", (bias, parameters))


class Product:
    """Packed weights: those of a convolution, or the second operand of a matrix product."""

    def __init__(
        self, shape: Any, weights: Array, steps: Sequence[int], scale: Array | None, *, upright: bool = False,
        whole: bool = False,
    ) -> None:  # fmt: skip
        scale = None if scale is None else np.ascontiguousarray(scale, np.float32)
        bytes_ = ffi().new("int64_t[3]", list(steps))
        create = library().pumice_nhwc_create_whole if whole else library().pumice_nhwc_create
        self.handle = create(shape, pointer(weights), bytes_, pointer(scale), 0)
        if self.handle == ffi().NULL:
            raise NativeError("the product cannot be packed: its shapes do not fit each other; check them")
        weakref.finalize(self, library().pumice_nhwc_free, self.handle)
        self.filters, self._upright = shape.filters, upright
        self._steps: dict[tuple[int, ...], Any] = {}
        self._run = library().pumice_nhwc_run

    @classmethod
    def of_matrix(cls, b: Array, scale: Array | None = None) -> Product:
        """For A B, with B (k, n) of any strides; `scale`, one a column, multiplies B."""
        one = Window(size=(1,), kernel=(1,), strides=(1,), dilations=(1,), before=(0,), after=(0,), output=(1,))
        steps = (b.strides[1] // b.itemsize, b.strides[0] // b.itemsize, 0)
        return cls(shape_struct(one, b.shape[0], b.shape[1], 1), b, steps, scale)

    @classmethod
    def of_convolution(
        cls, w: Array, window: Window, groups: int = 1, scale: Array | None = None, *, whole: bool = False
    ) -> Product:
        """Weights (filters, channels / groups, *kernel), one group or as many as channels and filters.

        Operands that are `whole` are never split.
        """
        w = np.ascontiguousarray(w, np.float32)
        taps = math.prod(w.shape[2:])
        upright = is_upright(window.size, window.kernel, window.output)
        shape = shape_struct(_turned(window) if upright else window, w.shape[1] * groups, w.shape[0], groups)
        return cls(shape, w, (w.shape[1] * taps, taps, 1), scale, upright=upright, whole=whole)

    def rows(self, a: Array, finish: Finish, residual: Array | None = None) -> Array:
        """(m, k) of any strides to (m, n), contiguous; the residual is like the result."""
        y = empty((len(a), self.filters))
        return self._call(a, (*a.strides, 0, 0), y, finish, residual)

    def image(self, x: Array, output: Sequence[int], finish: Finish, residual: Array | None = None) -> Array:
        """(batch, *output, filters), contiguous, of images (batch, channels, *size) of any strides."""
        steps = x.strides if x.ndim == MOST_AXES + 2 else (*x.strides[:2], 0, x.strides[2])
        if self._upright:
            steps = (*steps[:2], steps[3], steps[2])
        return self._call(x, steps, empty((len(x), *output, self.filters)), finish, residual)

    def _call(self, x: Array, strides: tuple[int, ...], y: Array, finish: Finish, residual: Array | None) -> Array:
        steps = self._steps.get(strides)
        if steps is None:
            steps = self._steps[strides] = ffi().new("int64_t[4]", [s // x.itemsize for s in strides])
        status = self._run(
            self.handle, len(x), _start(x), steps, _start(residual), _start(y), finish.struct, 0
        )  # fmt: skip
        check(status, "the product")
        return y


def is_upright(size: Sequence[int], kernel: Sequence[int], output: Sequence[int]) -> bool:
    """Whether an image is one column, which is turned into a row."""
    return tuple(size[1:]) == tuple(kernel[1:]) == tuple(output[1:]) == (1,)


def _turned(window: Window) -> Window:
    """The other axis last: an image of one column is quicker to read as one row."""
    return Window(**{f.name: getattr(window, f.name)[::-1] for f in attrs.fields(Window)})


def _start(array: Array | None) -> Any:
    if array is None:
        return ffi().NULL
    if array.flags.c_contiguous:
        return ffi().from_buffer("float[]", array)
    return pointer(array)


def last(x: Array) -> Array:
    """(batch, channels, *size) as (batch, *size, channels)."""
    return x.transpose(0, *range(2, x.ndim), 1)


def first(x: Array) -> Array:
    """(batch, *size, channels) as (batch, channels, *size)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def max_pool(x: Array, window: Window, *, threads: int = 0) -> Array:
    """The maximum of each window of (batch, *size, channels), contiguous; NaN wins."""
    channels = x.shape[-1]
    y = empty((len(x), *window.output, channels))
    shape = shape_struct(window, channels, channels, channels)
    check(library().pumice_nhwc_max_pool(shape, len(x), pointer(x), pointer(y), threads), "the pooling")
    return y
