"""Convolutions of the Plan: Conv and ConvTranspose with their gradients, and the integer ones, exact.

Constant weights are packed once for every image size that they meet and kept with the plan; others are packed as they
come, or multiplied where they lie if they are many for the pixels. Integer convolutions run with channels last and are
turned on the way in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.conv import OPS as CORE, adjoint_window
from pumice.ops.integer import OPS as CORE_INTEGER
from pumice.ops.record import Array, Arrays, Forward, Kernel, Node, Outputs
from pumice.ops.window import Window
from pumice_cpu.fusing import convolution

if TYPE_CHECKING:
    from pumice_cpu.conv_f32 import ConvF32
    from pumice_cpu.conv_u8 import ConvU8

MOST_AXES = 3
BYTES = frozenset({"uint8", "int8"})
_NUMPY: dict[str, Forward] = {op.op_type: op.forward for op in (*CORE, *CORE_INTEGER) if op.forward is not None}
"""For images without a pixel and for more axes than the kernels have."""

Pack = Callable[[], Any]


class Packed:
    """What was made of a node's constants, by image size; of anything else, made anew each time."""

    def __init__(self, constants: Sequence[Any], positions: Sequence[int]) -> None:
        self.constants = tuple(constants[i] if i < len(constants) else None for i in positions)
        self.made: dict[Any, Any] = {}

    def holds(self, arrays: Sequence[Any]) -> bool:
        """Whether all arrays are the constants."""
        return all(a is c for a, c in zip(arrays, self.constants, strict=True))

    def get(self, arrays: Sequence[Any], key: Any, pack: Pack) -> Any:
        """`pack()`, kept if all arrays are the constants."""
        if not self.holds(arrays):
            return pack()
        if key not in self.made:
            self.made[key] = pack()
        return self.made[key]


def _record(op_type: str, run: Callable[..., Outputs], positions: Sequence[int], **fields: Any) -> Kernel:
    """`run(node, packed, *arrays)`, where the inputs at the positions are what is packed."""
    nothing = Packed((), positions)

    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        packed = Packed(constants, positions)
        return lambda node, *arrays: run(node, packed, *arrays)

    return Kernel(op_type=op_type, run=lambda node, *arrays: run(node, nothing, *arrays), bind=bind, **fields)


def _runs_here(x: Array, output: Sequence[int]) -> bool:
    return 0 < x.ndim - 2 <= MOST_AXES and 0 not in x.shape[1:] and min(output, default=0) > 0


# --- float ------------------------------------------------------------------------------------------------------------


def _check(x: Array, channels: int) -> None:
    if x.shape[1] != channels:
        raise ValueError(f"the input has {x.shape[1]} channels and the weights take {channels}")


def _conv(node: Node, packed: Packed, x: Array, w: Array, b: Array | None = None) -> Outputs:
    from pumice_cpu import conv_products
    from pumice_cpu.conv_f32 import ConvF32

    if not packed.holds([w]) and _multiplies(node, x, w):
        y = conv_products.convolve(x, w, Window.of(node, x.shape[2:], w.shape[2:]))
        return (y if b is None else np.add(y, b.reshape(-1, *(1,) * (y.ndim - 2)), out=y),)

    def pack() -> ConvF32 | None:
        groups, window = node.get("group", 1), Window.of(node, x.shape[2:], w.shape[2:])
        _check(x, w.shape[1] * groups)
        return ConvF32(w, window, groups=groups) if _runs_here(x, window.output) else None

    conv: ConvF32 | None = packed.get([w], x.shape[1:], pack)
    return _NUMPY["Conv"](node, x, w, b) if conv is None else (conv(x, b),)


def _multiplies(node: Node, x: Array, w: Array) -> bool:
    """Whether the products of `conv_products` compute this convolution, forward and backward."""
    from pumice_cpu.conv_products import worthwhile

    groups, window = node.get("group", 1), Window.of(node, x.shape[2:], w.shape[2:])
    return x.shape[1] == w.shape[1] * groups and _runs_here(x, window.output) and worthwhile(x, w, window)


def _conv_transpose(node: Node, packed: Packed, x: Array, w: Array, b: Array | None = None) -> Outputs:
    def pack() -> ConvF32 | None:
        window, size = adjoint_window(node, x.shape[2:], w.shape[2:])
        _check(x, w.shape[0])
        return _adjoint(w, window, size, node.get("group", 1)) if _runs_here(x, size) else None

    conv: ConvF32 | None = packed.get([w], x.shape[1:], pack)
    return _NUMPY["ConvTranspose"](node, x, w, b) if conv is None else (conv(x, b),)


def _adjoint(w: Array, window: Window, size: Sequence[int], groups: int) -> ConvF32:
    """The adjoint of the convolution with a window, to results of a size."""
    from pumice_cpu.conv_f32 import ConvF32

    reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True)]
    before = tuple(r - p for r, p in zip(reach, window.before, strict=True))
    dense = groups == 1 and max(window.strides) == 1 and min(before) >= 0
    turned = Window(
        size=window.output, kernel=window.kernel, strides=window.strides, dilations=window.dilations,
        before=before if dense else window.before, after=window.after, output=tuple(size),
    )  # fmt: skip
    if not dense:
        return ConvF32(w, turned, groups=groups, transposed=True)
    # Without strides it is a convolution with the kernel turned around, for which there are more kernels.
    return ConvF32(np.flip(w, tuple(range(2, w.ndim))).swapaxes(0, 1), turned)


def _conv_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Sequence[bool]) -> Outputs:
    from pumice_cpu import conv_products
    from pumice_cpu.conv_f32 import weight_gradient

    (x, w), dy, groups = inputs[:2], grads[0], node.get("group", 1)
    window = Window.of(node, x.shape[2:], w.shape[2:])
    if not _runs_here(x, window.output):
        return _numpy_gradient("Conv", node, inputs, outputs, grads, wanted)
    if _multiplies(node, x, w):
        dx = conv_products.input_gradient(w, dy, window) if wanted[0] else None
        dw = conv_products.weight_gradient(x, dy, window) if wanted[1] else None
        return (dx, dw, *_bias_gradient(dy, wanted))
    dx = _adjoint(w, window, x.shape[2:], groups)(dy) if wanted[0] else None
    dw = weight_gradient(x, dy, window, groups=groups) if wanted[1] else None
    return (dx, dw, *_bias_gradient(dy, wanted))


def _conv_transpose_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Sequence[bool]) -> Outputs:
    """dx is the convolution itself; dw that of the convolution that takes dy to x."""
    from pumice_cpu.conv_f32 import ConvF32, weight_gradient

    (x, w), dy, groups = inputs[:2], grads[0], node.get("group", 1)
    window, size = adjoint_window(node, x.shape[2:], w.shape[2:])
    if not _runs_here(x, size):
        return _numpy_gradient("ConvTranspose", node, inputs, outputs, grads, wanted)
    forward = Window(
        size=tuple(size), kernel=window.kernel, strides=window.strides, dilations=window.dilations,
        before=window.before, after=window.after, output=window.output,
    )  # fmt: skip
    dx = ConvF32(w, forward, groups=groups)(dy) if wanted[0] else None
    dw = weight_gradient(dy, x, forward, groups=groups) if wanted[1] else None
    return (dx, dw, *_bias_gradient(dy, wanted))


def _numpy_gradient(op_type: str, *arguments: Any) -> Outputs:
    (op,) = [op for op in CORE if op.op_type == op_type]
    assert op.vjp is not None
    return tuple(op.vjp(*arguments))


def _bias_gradient(dy: Array, wanted: Sequence[bool]) -> list[Any]:
    return [dy.sum(axis=(0, *range(2, dy.ndim))) if want else None for want in wanted[2:]]


# --- integers ---------------------------------------------------------------------------------------------------------


def _levels_off(w: Array, zero: Array | None) -> Array:
    """w - zero as int16, a vector zero point along the filters."""
    levels = w.astype(np.int16)
    if zero is None:
        return levels
    zero = zero.astype(np.int16)
    return levels - (zero.reshape(()) if zero.size == 1 else zero.reshape(-1, *(1,) * (w.ndim - 1)))


def _packed_levels(
    node: Node, packed: Packed, x: Array, zx: Array | None, w: Array, zw: Array | None, b: Array | None
) -> ConvU8:
    from pumice_cpu.conv_u8 import ConvU8

    def pack() -> ConvU8:
        return ConvU8(
            _levels_off(w, zw), window, groups=groups, bias=b, zero_point=zero, signed=x.dtype == np.int8
        )  # fmt: skip

    groups, zero = node.get("group", 1), 0 if zx is None else int(zx.reshape(()))
    window = Window.of(node, x.shape[2:], w.shape[2:])
    conv: ConvU8 = packed.get([w, zw, b], (x.shape[2:], x.dtype, zero), pack)
    return conv


def _fits(node: Node, x: Array, w: Array) -> bool:
    _check(x, w.shape[1] * node.get("group", 1))
    return _runs_here(x, Window.of(node, x.shape[2:], w.shape[2:]).output) and w.dtype.name in BYTES


def _channels_last(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _channels_first(y: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(y, -1, 1))


def _conv_integer(
    node: Node, packed: Packed, x: Array, w: Array, zx: Array | None = None, zw: Array | None = None
) -> Outputs:
    if not _fits(node, x, w):
        return _NUMPY["ConvInteger"](node, x, w, zx, zw)
    conv = _packed_levels(node, packed, x, zx, w, zw, None)
    return (_channels_first(conv.sums(_channels_last(x))),)


def _qlinear_conv(
    node: Node, packed: Packed, x: Array, sx: Array, zx: Array, w: Array, sw: Array, zw: Array, sy: Array, zy: Array,
    b: Array | None = None,
) -> Outputs:  # fmt: skip
    """The multiplier is computed as core does, in float32: sx sw / sy."""
    from pumice_cpu.conv_u8 import Requantize

    if not _fits(node, x, w) or zy.dtype.name not in BYTES:
        return _NUMPY["QLinearConv"](node, x, sx, zx, w, sw, zw, sy, zy, b)
    conv = _packed_levels(node, packed, x, zx, w, zw, b)
    multiplier = sx.astype(np.float32).reshape(()) * sw.astype(np.float32) / sy.astype(np.float32).reshape(())
    how = Requantize(multiplier=np.asarray(multiplier, np.float32), zero_point=zy.reshape(()))
    return (_channels_first(conv.levels(_channels_last(x), how)),)


# --- records ----------------------------------------------------------------------------------------------------------

_SUMS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
_EXACT: dict[str, Any] = {"dtypes": BYTES, "rtol": 0.0, "atol": 0.0}

KERNELS = (
    _record("Conv", _conv, [1], fuse=convolution, **_SUMS),
    _record("ConvTranspose", _conv_transpose, [1], **_SUMS),
    _record("ConvInteger", _conv_integer, [1, 3, 4], **_EXACT),
    _record("QLinearConv", _qlinear_conv, [3, 5, 8], **_EXACT),
    Kernel(op_type="Conv", part="vjp", run=_conv_vjp, **_SUMS),
    Kernel(op_type="ConvTranspose", part="vjp", run=_conv_transpose_vjp, **_SUMS),
)
