"""Resize: interpolation along one axis after another.

Output position o maps to a source coordinate x(o), depending on `coordinate_transformation_mode`, e.g. half_pixel:
x = (o + 0.5) / scale - 0.5. With p = ceil(x) - 1 and r = x - p in (0, 1], the value is

    y[o] = sum over i of K((i - r) a) v[clamp(p + i)],   normalised where taps are left out or antialiased

for taps i around 0..1, where K is the triangle (linear) or the cubic kernel, and a = min(scale, 1) if `antialias`, else
1. Nearest takes v[round(x)] with the rounding of `nearest_mode`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import ModelError
from pumice.ops.channels import Blocked, Channels, Edit, Kept, Same, Site, Tie, into, kept_sizes, out
from pumice.ops.dtypes import integer_range, is_float, wide
from pumice.ops.gradient import namespace
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic


@attrs.frozen(kw_only=True)
class Axis:
    """What happens along one axis."""

    index: int
    size: int
    output: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def _coordinates(axis: Axis, mode: str, xp: Any) -> Any:
    """Source coordinate of every output position, in a namespace."""
    o, length = xp.arange(axis.output, dtype=np.float64), axis.scale * axis.size
    half_pixel = (o + 0.5) / axis.scale - 0.5
    if mode == "half_pixel":
        return half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if axis.output > 1 else np.full_like(o, -0.5)
    if mode == "half_pixel_symmetric":
        return half_pixel + axis.size / 2 * (1 - axis.output / length)
    if mode == "asymmetric":
        return o / axis.scale
    if mode == "align_corners":
        return o * (axis.size - 1) / (length - 1) if length != 1 else np.zeros_like(o)
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.output > 1:
            return start * (axis.size - 1) + o * (end - start) * (axis.size - 1) / (axis.output - 1)
        return np.full_like(o, (start + end) * (axis.size - 1) / 2)
    raise ModelError(f"Resize has coordinate_transformation_mode '{mode}', which ONNX does not define")


_ROUNDING: dict[str, Callable[[Array], Any]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(t: Array) -> Any:
    return np.maximum(0, 1 - np.abs(t))


def _cubic(t: Array, a: float) -> Any:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _taps(x: Array, axis: Axis, node: Node) -> tuple[Array, Array]:
    """Source positions (outputs, taps), unclamped, and their weights."""
    cubic, antialias = node.get("mode") == "cubic", bool(node.get("antialias", 0))
    shrink = min(axis.scale, 1.0) if antialias else 1.0
    first = math.floor(-(2 if cubic else 1) / shrink) + 1
    offsets = namespace(x).arange(first, 2 - first)
    base = np.ceil(x) - 1
    distance = (offsets - (x - base)[:, None]) * shrink
    weights = _cubic(distance, node.get("cubic_coeff_a", -0.75)) if cubic else _linear(distance)
    positions = base.astype(np.int64)[:, None] + offsets
    if node.get("exclude_outside", 0):
        weights = np.where((positions < 0) | (positions >= axis.size), 0, weights)
    if antialias or node.get("exclude_outside", 0):
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return positions, weights


def _interpolate(v: Array, axis: Axis, node: Node) -> Any:
    mode = node.get("coordinate_transformation_mode", "half_pixel" if node.opset > 10 else "asymmetric")
    x = _coordinates(axis, mode, namespace(v))
    column = (-1, *(1,) * (v.ndim - 1 - axis.index))
    if node.get("mode", "nearest") == "nearest":
        rounding = _ROUNDING[node.get("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor")]
        y = np.take(v, np.clip(rounding(x), 0, axis.size - 1).astype(np.int64), axis=axis.index)
    else:
        positions, weights = _taps(x, axis, node)
        positions = np.clip(positions, 0, axis.size - 1)
        y = namespace(v).zeros((*v.shape[: axis.index], axis.output, *v.shape[axis.index + 1 :]), v.dtype)
        for tap in range(positions.shape[1]):
            y += np.take(v, positions[:, tap], axis=axis.index) * weights[:, tap].reshape(column).astype(v.dtype)
    if mode == "tf_crop_and_resize":
        outside = ((x < 0) | (x > axis.size - 1)).reshape(column)
        y = np.where(outside, y.dtype.type(node.get("extrapolation_value", 0.0)), y)
    return y


def _axes(node: Node, shape: Shape, roi: Array | None, scales: Sequence[float] | None, sizes: Any) -> list[Axis]:
    assert shape is not None
    chosen = [a % len(shape) for a in node.get("axes") or range(len(shape))]
    inputs = [shape[a] for a in chosen]
    if sizes is not None and len(sizes):
        wanted = [int(n) for n in sizes]
        scales = [n / m for n, m in zip(wanted, inputs, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            common = min(scales) if policy == "not_larger" else max(scales)
            scales, wanted = [common] * len(chosen), [int(common * n + 0.5) for n in inputs]
    else:
        assert scales is not None
        wanted = [int(np.floor(n * s)) for n, s in zip(inputs, scales, strict=True)]
    spans = np.concatenate([np.zeros(len(chosen)), np.ones(len(chosen))]) if roi is None or not roi.size else roi
    return [
        Axis(index=a, size=m, output=n, scale=float(s), roi=(float(spans[i]), float(spans[i + len(chosen)])))
        for i, (a, m, n, s) in enumerate(zip(chosen, inputs, wanted, scales, strict=True))
    ]


def _resized(node: Node, x: Array, axes: Sequence[Axis]) -> Outputs:
    nearest = node.get("mode", "nearest") == "nearest"
    y = x if nearest else wide(x) if is_float(x.dtype) else x.astype(np.float64)
    for axis in axes:
        if axis.output != axis.size or axis.scale != 1 or axis.roi != (0.0, 1.0):
            y = _interpolate(y, axis, node)
    if not nearest and not is_float(x.dtype):
        y = np.clip(np.rint(y), *integer_range(x.dtype))
    return (y.astype(x.dtype, copy=False),)


def _resize(
    node: Node, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Outputs:
    factors = None if scales is None or not scales.size else scales.tolist()
    return _resized(node, x, _axes(node, x.shape, roi, factors, sizes))


def _resize_by_scales(node: Node, x: Array, scales: Array | None = None) -> Outputs:
    """Resize 10 and Upsample: factors only, corners at zero, nearest rounds down."""
    factors = node.attributes["scales"] if scales is None else scales.tolist()
    return _resized(attrs.evolve(node, opset=min(node.opset, 10)), x, _axes(node, x.shape, None, factors, None))


def _adjoint(node: Node, dy: Any, axes: Sequence[Axis]) -> Any:
    """Interpolation along an axis is a matrix, found by interpolating the identity; this applies its transpose."""
    plain = attrs.evolve(node, attributes={**node.attributes, "extrapolation_value": 0.0})
    for axis in reversed(axes):
        if axis.output != axis.size or axis.scale != 1 or axis.roi != (0.0, 1.0):
            matrix = _interpolate(np.eye(axis.size), attrs.evolve(axis, index=0), plain)
            matrix = namespace(dy).asarray(matrix, dtype=dy.dtype)
            dy = np.moveaxis(np.tensordot(dy, matrix, axes=(axis.index, 0)), -1, axis.index)
    return dy


def _resize_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, roi, scales, sizes = (*inputs, None, None, None)[:4]
    factors = None if scales is None or not scales.size else scales.tolist()
    return [_adjoint(node, grads[0], _axes(node, x.shape, roi, factors, sizes)), *[None] * (len(inputs) - 1)]


def _resize_by_scales_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    factors = node.attributes["scales"] if len(inputs) < 2 else inputs[1].tolist()
    old = attrs.evolve(node, opset=min(node.opset, 10))
    return [_adjoint(old, grads[0], _axes(node, inputs[0].shape, None, factors, None)), *[None] * (len(inputs) - 1)]


def _resize_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    taps = {"nearest": 0, "linear": 2, "cubic": 4}[node.get("mode", "nearest")]
    return OpCost(macs=taps * elements(outputs[0]), bytes=traffic(node, inputs, outputs).bytes)


# --- channels ---------------------------------------------------------------------------------------------------------


def _channel_ties(site: Site) -> Iterator[Tie]:
    """Only axes that keep their size: along the others positions are mixed."""
    for axis in range(site.rank(0)):
        if site.size(0, axis) == site.size(~0, axis):
            yield Same(into(0, axis), out(0, axis))
        else:
            yield Blocked(into(0, axis), f"{site.node.op_type} interpolates along the axis")


def _sizes_edit(site: Site, kept: Kept) -> Edit | None:
    if not site.has(3):
        return None
    axes = [axis % site.rank(0) for axis in site.node.get("axes") or range(site.rank(0))]
    return Edit(vectors={3: {axes.index(a): n for a, n in kept_sizes(site, kept, ~0).items() if a in axes}})


_CHANNELS = Channels(_channel_ties, _sizes_edit)

_BY_SCALES = Vjp(_resize_by_scales_vjp, wrt=(0,), inputs=(1,), outputs=())
_BY_SIZES = Vjp(_resize_vjp, wrt=(0,), inputs=(1, 2, 3), outputs=())

OPS = (
    Op("Resize", since=10, until=10, forward=_resize_by_scales, vjp=_BY_SCALES, cost=_resize_cost, channels=_CHANNELS),
    Op("Resize", since=11, forward=_resize, vjp=_BY_SIZES, cost=_resize_cost, channels=_CHANNELS),
    Op("Upsample", since=7, forward=_resize_by_scales, vjp=_BY_SCALES, cost=_resize_cost, channels=_CHANNELS),
)
