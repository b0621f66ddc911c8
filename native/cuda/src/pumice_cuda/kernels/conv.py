"""Convolutions of the Plan over two spatial axes with constant weights: float32, float16, and integers, exact.

Results have ONNX's shape (n, channels, height, width) but lie in memory with channels last, as the next convolution
reads them; other layouts are copied on the way in. float32 keeps its accuracy. Anything else goes to core's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice.ops.window import Window
from pumice_cuda import reference
from pumice_cuda.constants import Levels, bound, is_single, number, vector

if TYPE_CHECKING:
    from pumice_cuda.conv import Conv

BYTES, FLOATS = frozenset({"uint8", "int8"}), frozenset({"float32", "float16"})


class Layer:
    """A node's convolution, prepared for every image size that it meets."""

    def __init__(self, node: Node, weights: Any, padding: int = 0) -> None:
        """`weights`: (outputs, channels of a group, height, width)."""
        import cupy

        self.weights = cupy.ascontiguousarray(cupy.moveaxis(weights, 1, -1))
        self.node, self.padding, self.groups = node, padding, int(node.get("group", 1))
        self._convs: dict[tuple[int, ...], Conv] = {}

    def takes(self, x: Array, types: frozenset[str]) -> bool:
        channels = self.weights.shape[-1] * self.groups
        return bool(x.dtype.name in types and x.ndim == 4 and x.size and x.shape[1] == channels)

    def __call__(self, x: Array, epilogue: Any) -> Any:
        import cupy

        from pumice_cuda.conv import Conv

        size = x.shape[2:]
        if size not in self._convs:
            window = Window.of(self.node, size, self.weights.shape[1:3])
            self._convs[size] = Conv(
                self.weights, window, groups=self.groups, padding=self.padding, precision="float32"
            )  # fmt: skip
        images = cupy.ascontiguousarray(cupy.moveaxis(x, 1, -1))
        return cupy.moveaxis(self._convs[size](images, epilogue), -1, 1)


def _conv(node: Node, constants: Sequence[Any]) -> Forward | None:
    (w,) = constants
    if w is None or w.ndim != 4 or not w.size or w.dtype.name not in FLOATS:
        return None
    layer = Layer(node, w)
    return lambda node, x, w, b=None: _float_conv(layer, node, x, w, b)


def _unbound_conv(node: Node, x: Array, w: Array, b: Array | None = None) -> Outputs:
    if w.ndim != 4 or not w.size:
        return reference.forward(node, x, w, b)
    return _float_conv(Layer(node, w), node, x, w, b)


def _float_conv(layer: Layer, node: Node, x: Array, w: Array, b: Array | None) -> Outputs:
    from pumice_cuda.epilogue import Epilogue

    if not layer.takes(x, frozenset({w.dtype.name})):
        return reference.forward(node, x, w, b)
    bias = None if b is None else b.astype(np.float32, copy=False)
    return (layer(x, Epilogue(output=w.dtype.name, bias=bias)),)


def _levels(w: Any, zw: Any) -> Levels | None:
    return None if w is None or w.ndim != 4 or w.dtype.name not in BYTES else Levels.of(w, zw)


def _conv_integer(node: Node, constants: Sequence[Any]) -> Forward | None:
    w, zx, zw = constants
    levels = _levels(w, zw) if is_single(zx) else None
    if levels is None:
        return None
    return _integer_run(Layer(node, levels.values, number(zx)), output="int32", offset=levels.offset(number(zx)))


def _qlinear_conv(node: Node, constants: Sequence[Any]) -> Forward | None:
    """The multiplier is computed as core does, in float32: sx sw / sy."""
    sx, zx, w, sw, zw, sy, zy, bias = constants
    known = all(c is not None for c in (sx, zx, sw, sy, zy)) and is_single(sx, zx, sy, zy) and zy.dtype.name in BYTES
    levels = _levels(w, zw) if known else None
    if levels is None:
        return None
    return _integer_run(
        Layer(node, levels.values, number(zx)), output=zy.dtype.name, scale=vector(sx) * vector(sw) / vector(sy),
        offset=levels.offset(number(zx), bias), zero=number(zy),
    )  # fmt: skip


def _integer_run(layer: Layer, **fields: Any) -> Forward:
    from pumice_cuda.epilogue import Epilogue

    epilogue = Epilogue(**fields)

    def run(node: Node, x: Array, *rest: Any) -> Outputs:
        return (layer(x, epilogue),) if layer.takes(x, BYTES) else reference.forward(node, x, *rest)

    return run


_EXACT: dict[str, Any] = {"dtypes": BYTES, "rtol": 0.0, "atol": 0.0}

KERNELS = (
    Kernel(
        op_type="Conv", run=_unbound_conv, bind=bound((1,), _conv), dtypes=FLOATS, rtol=1e-4, atol=1e-4,
    ),
    Kernel(op_type="ConvInteger", run=reference.forward, bind=bound((1, 2, 3), _conv_integer), **_EXACT),
    Kernel(
        op_type="QLinearConv", run=reference.forward, bind=bound((1, 2, 3, 4, 5, 6, 7, 8), _qlinear_conv), **_EXACT
    ),
)  # fmt: skip
