"""Convolutions of the Plan over two spatial axes with constant weights: floats, and integers, exact.

Results have ONNX's shape (n, channels, height, width) but lie in memory with channels last, as the next convolution
reads them; other layouts are copied on the way in, if the kernel cannot read them. float32 keeps its accuracy. What
follows a convolution of floats (`fusing`), and a QLinearAdd after a quantized one, is computed as that is stored.
Anything else goes to core's code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Link, Node, Outputs
from pumice.ops.window import Window
from pumice_cuda import reference
from pumice_cuda.constants import Levels, bound, is_single, number, vector
from pumice_cuda.fusing import FLOATS, Tail
from pumice_cuda.transfers import to_host

if TYPE_CHECKING:
    from pumice_cuda.conv import Conv
    from pumice_cuda.epilogue import Epilogue, LevelSum

BYTES = frozenset({"uint8", "int8"})
ADDENDS = (0, 3)
"""Places of the levels that a QLinearAdd adds."""


class Layer:
    """A node's convolution, prepared for every image size that it meets."""

    def __init__(self, node: Node, weights: Any, padding: int = 0) -> None:
        """`weights`: (outputs, channels of a group, height, width)."""
        self.node, self.padding, self.groups = node, padding, int(node.get("group", 1))
        self._weights = weights
        self._convs: dict[tuple[int, ...], Conv] = {}

    @functools.cached_property
    def weights(self) -> Any:
        """Channels last, laid out when they are first needed: a node of a chain may never run by itself."""
        return channels_last(self._weights)

    def takes(self, x: Array, types: frozenset[str]) -> bool:
        channels = self._weights.shape[1] * self.groups
        return bool(x.dtype.name in types and x.ndim == 4 and x.size and x.shape[1] == channels)

    def __call__(self, x: Array, epilogue: Any) -> Any:
        import cupy

        return cupy.moveaxis(self._conv(x.shape[2:])(cupy.moveaxis(x, 1, -1), epilogue), -1, 1)

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for images of a shape."""
        return shape[0], len(self._weights), *self._conv(shape[2:]).window.output

    def _conv(self, size: tuple[int, ...]) -> Conv:
        from pumice_cuda.conv import Conv

        if size not in self._convs:
            window = Window.of(self.node, size, self.weights.shape[1:3])
            self._convs[size] = Conv(
                self.weights, window, groups=self.groups, padding=self.padding, precision="float32"
            )  # fmt: skip
        return self._convs[size]


def channels_last(x: Array) -> Any:
    """(n, channels, height, width) as contiguous (n, height, width, channels), without a copy where it lies so."""
    import cupy

    return cupy.ascontiguousarray(cupy.moveaxis(x, 1, -1))


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


def _float_chain(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """A convolution and the normalisation, terms, residual and activation after it."""
    (first, *tail), (w, b) = chain, (*chain[0].constants[1:], None)[:2]
    if not tail or w is None or w.ndim != 4 or not w.size or w.dtype.name not in FLOATS:
        return None
    read = Tail(columns=len(w), axis=3)
    if len(first.constants) > 2:
        if b is None or b.shape != (len(w),):
            return None
        read.add(b)
    if not read.read(chain, w.dtype.name):
        return None
    layer, types = Layer(first.node, w), frozenset({w.dtype.name})

    def run(*arrays: Any) -> Any:
        x = arrays[0]
        epilogue = read.epilogue(arrays, layer.result(x.shape)) if layer.takes(x, types) else None
        if epilogue is None:
            return NotImplemented
        if epilogue.residual is not None:
            epilogue = attrs.evolve(epilogue, residual=channels_last(epilogue.residual))
        return (layer(x, epilogue),)

    return run


def _levels(w: Any, zw: Any) -> Levels | None:
    return None if w is None or w.ndim != 4 or w.dtype.name not in BYTES else Levels.of(w, zw)


def _conv_integer(node: Node, constants: Sequence[Any]) -> Forward | None:
    from pumice_cuda.epilogue import Epilogue

    w, zx, zw = constants
    levels = _levels(w, zw) if is_single(zx) else None
    if levels is None:
        return None
    epilogue = Epilogue(output="int32", offset=levels.offset(number(zx)))
    return _integer_run(Layer(node, levels.values, number(zx)), epilogue)


def _qlinear_conv(node: Node, constants: Sequence[Any]) -> Forward | None:
    found = _requantized(node, constants)
    return None if found is None else _integer_run(*found)


def _requantized(node: Node, constants: Sequence[Any]) -> tuple[Layer, Epilogue] | None:
    """The multiplier is computed as core does, in float32: sx sw / sy."""
    from pumice_cuda.epilogue import Epilogue

    sx, zx, w, sw, zw, sy, zy, bias = constants
    known = all(c is not None for c in (sx, zx, sw, sy, zy)) and is_single(sx, zx, sy, zy) and zy.dtype.name in BYTES
    levels = _levels(w, zw) if known else None
    if levels is None:
        return None
    epilogue = Epilogue(
        output=zy.dtype.name, scale=vector(sx) * vector(sw) / vector(sy), offset=levels.offset(number(zx), bias),
        zero=number(zy),
    )  # fmt: skip
    return Layer(node, levels.values, number(zx)), epilogue


def _integer_run(layer: Layer, epilogue: Epilogue) -> Forward:
    def run(node: Node, x: Array, *rest: Any) -> Outputs:
        return (layer(x, epilogue),) if layer.takes(x, BYTES) else reference.forward(node, x, *rest)

    return run


def _qlinear_conv_add(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """A convolution whose levels are added to others before they are stored."""
    if len(chain) != 2 or chain[1].node.op_type != "QLinearAdd" or chain[1].at not in ADDENDS:
        return None
    convolution, addition = chain
    found = _requantized(convolution.node, (*convolution.constants, None)[1:9])
    added = _level_sum(addition)
    if found is None or added is None:
        return None
    (layer, epilogue), taken = found, [i for i in range(len(addition.constants)) if i != addition.at]
    known = [*convolution.constants, *(addition.constants[i] for i in taken)]
    other = len(convolution.constants) + taken.index(sum(ADDENDS) - addition.at)

    def run(*arrays: Any) -> Any:
        x, residual = arrays[0], arrays[other]
        pairs = enumerate(zip(arrays, known, strict=True))
        if any(have is not want for i, (have, want) in pairs if i not in (0, other)):
            return NotImplemented
        if not layer.takes(x, BYTES) or residual.dtype.name != epilogue.output:
            return NotImplemented
        if residual.shape != layer.result(x.shape):
            return NotImplemented
        return (layer(x, attrs.evolve(epilogue, level_sum=added, residual=channels_last(residual))),)

    return run


def _level_sum(addition: Link) -> LevelSum | None:
    """Its factors and the offset that all zero points are folded into, in float32 as core computes them."""
    from pumice_cuda.epilogue import LevelSum

    _, sa, za, _, sb, zb, sy, zy = (*addition.constants, None)[:8]
    if any(c is None for c in (sa, sb, sy)) or not is_single(sa, za, sb, zb, sy, zy):
        return None
    factors = [np.float32(to_host(s)).reshape(()) / np.float32(to_host(sy)).reshape(()) for s in (sa, sb)]
    inner = factors[1] * np.float32(number(zb))
    offset = np.float32(number(zy)) - np.float32(number(za) * np.float64(factors[0]) + np.float64(inner))
    own, beside = factors if addition.at == 0 else factors[::-1]
    return LevelSum(
        level_factor=float(own), residual_factor=float(beside), offset=float(offset), residual_last=addition.at != 0
    )


_EXACT: dict[str, Any] = {"dtypes": BYTES, "rtol": 0.0, "atol": 0.0}

KERNELS = (
    Kernel(
        op_type="Conv", run=_unbound_conv, bind=bound((1,), _conv), fuse=_float_chain, dtypes=FLOATS, rtol=1e-4,
        atol=1e-4,
    ),
    Kernel(op_type="ConvInteger", run=reference.forward, bind=bound((1, 2, 3), _conv_integer), **_EXACT),
    Kernel(
        op_type="QLinearConv", run=reference.forward, bind=bound((1, 2, 3, 4, 5, 6, 7, 8), _qlinear_conv),
        fuse=_qlinear_conv_add, **_EXACT,
    ),
)  # fmt: skip
