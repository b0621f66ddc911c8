"""Quantization of tensors: q = saturate(round(x / scale) + zero_point) and back, x = (q - zero_point) scale.

Rounding is half to even. Scales are one number, one per index of `axis`, or one per block of `block_size` along `axis`.
Integer types of 2, 4, 8 and 16 bits saturate at their range; float8 types saturate or overflow as `saturate` says;
float4 and float6 types always saturate. The quotient is taken in float32, or in the wider or explicitly asked type
(`precision`); like ONNX Runtime, a float16 scale does not make the division itself narrow, so that integers agree with
it bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pumice.errors import ModelError
from pumice.ops.cast import cast
from pumice.ops.channels import Channels, Same, Site, Tie, into, out
from pumice.ops.dtypes import integer_range, is_float, numpy_dtype
from pumice.ops.gradient import namespace
from pumice.ops.record import Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic


def aligned_to(parameter: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point, shaped to broadcast against the tensor it belongs to."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis %= len(shape)
    if block:
        repeated = np.repeat(parameter, block, axis=axis)
        return repeated[(slice(None),) * axis + (slice(shape[axis]),)]
    if parameter.size != shape[axis]:
        raise ModelError(
            f"a scale of {parameter.size} values cannot quantize axis {axis} of shape {list(shape)}; give it "
            f"{shape[axis]} values or one"
        )
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def quantize(x: Array, scale: Array, zero_point: Array | None, dtype: np.dtype[Any], saturate: bool = True) -> Array:
    """Already aligned parameters; the division is in the type of `x` and `scale`."""
    quotient = x / scale
    if is_float(dtype):
        if zero_point is not None:
            quotient = quotient + zero_point.astype(quotient.dtype)
        return cast(quotient.astype(np.float32), dtype, saturate)
    low, high = integer_range(dtype)
    offset: Any = 0 if zero_point is None else zero_point.astype(np.float64)
    levels = np.clip(np.rint(quotient).astype(np.float64) + offset, low, high)
    return namespace(levels).asarray(levels).astype(dtype)  # type: ignore[no-any-return]


def _quantize_linear(node: Node, x: Array, scale: Array, zero_point: Array | None = None) -> Outputs:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    code = node.get("output_dtype", 0)
    dtype = zero_point.dtype if zero_point is not None else numpy_dtype(code) if code else np.dtype(np.uint8)
    work = numpy_dtype(node.attributes["precision"]) if node.get("precision", 0) else np.dtype(np.float32)
    ready = aligned_to(scale, x.shape, axis, block).astype(work)
    zero = None if zero_point is None else aligned_to(zero_point, x.shape, axis, block)
    return (quantize(x.astype(work), ready, zero, dtype, bool(node.get("saturate", 1))),)


def _dequantize_linear(node: Node, q: Array, scale: Array, zero_point: Array | None = None) -> Outputs:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    exact = np.int64 if q.dtype == np.int32 else np.float32
    levels = q.astype(exact)
    if zero_point is not None:
        levels = levels - aligned_to(zero_point, q.shape, axis, block).astype(exact)
    ready = aligned_to(scale, q.shape, axis, block).astype(np.float32)
    dtype = numpy_dtype(node.attributes["output_dtype"]) if node.get("output_dtype", 0) else scale.dtype
    return ((levels.astype(np.float32) * ready).astype(dtype),)


def dynamic_parameters(x: Array) -> tuple[Array, Array]:
    """Scale and uint8 zero point of the range of `x`, widened to hold zero."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    zero_point = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return scale, namespace(zero_point).asarray(zero_point)


def _dynamic_quantize_linear(node: Node, x: Array) -> Outputs:
    scale, zero_point = dynamic_parameters(x)
    return quantize(x, scale, zero_point, np.dtype(np.uint8)), scale, zero_point


# --- gradients, straight through --------------------------------------------------------------------------------------


def _quantize_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Rounding counts as the identity, saturation as itself: dx = dq / scale where q is inside its range, else 0.

    The gradient of an integer is that of the level it stands for. With dequantization after it, the scale gets
    dy (q - x / scale) inside the range and dy q outside, which is LSQ (Esser et al., ICLR 2020).
    """
    x, scale = inputs[:2]
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    zero = inputs[2] if len(inputs) > 2 else None
    ready = aligned_to(scale, x.shape, axis, block).astype(x.dtype)
    levels = x / ready
    low, high = integer_range(outputs[0].dtype)
    offset = 0.0 if zero is None else aligned_to(zero, x.shape, axis, block).astype(x.dtype)
    inside = (np.rint(levels) + offset >= low) & (np.rint(levels) + offset <= high)
    dx = grads[0] / ready * inside
    dscale = _to_parameter(-dx * levels, scale, axis, block) if wanted[1] else None
    return [dx, dscale, *[None] * (len(inputs) - 2)]


def _dequantize_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    q, scale, *zero = inputs
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    levels = q.astype(grads[0].dtype)
    if zero and zero[0] is not None:
        levels = levels - aligned_to(zero[0], q.shape, axis, block).astype(levels.dtype)
    dscale = _to_parameter(grads[0] * levels, scale, axis, block) if wanted[1] else None
    return [grads[0] * aligned_to(scale, q.shape, axis, block), dscale, *[None] * len(zero)]


def _to_parameter(grad: Any, parameter: Any, axis: int, block: int) -> Any:
    """The sum over what shares a value of the parameter."""
    if parameter.size == 1:
        return grad.sum().reshape(parameter.shape)
    axis %= grad.ndim
    if not block:
        return grad.sum(axis=tuple(i for i in range(grad.ndim) if i != axis))
    starts = np.arange(0, grad.shape[axis], block)
    return np.add.reduceat(grad, starts, axis=axis)


# --- channels ---------------------------------------------------------------------------------------------------------


def _channel_ties(site: Site) -> Iterator[Tie]:
    """A scale a channel lies along `axis`; blocks of several elements to a scale hold the axis as it is."""
    axis = site.node.get("axis", 1) % max(site.rank(0), 1)
    blocked = site.node.get("block_size", 0)
    for each in range(site.rank(0)):
        if not (blocked and each == axis):
            yield Same(into(0, each), out(0, each))
    for index in range(1, len(site.inputs)):
        if site.rank(index) == 1 and site.size(index, 0) == site.size(0, axis):
            yield Same(into(index, 0), into(0, axis))


OPS = (
    *(
        Op(name, since=since, domain=domain, forward=forward, vjp=vjp, cost=traffic, channels=Channels(_channel_ties))
        for domain, since in (("", 10), ("com.microsoft", 1))
        for name, forward, vjp in (
            ("QuantizeLinear", _quantize_linear, Vjp(_quantize_vjp, wrt=(0, 1), outputs=())),
            ("DequantizeLinear", _dequantize_linear, Vjp(_dequantize_vjp, wrt=(0, 1), outputs=())),
        )
    ),
    Op("DynamicQuantizeLinear", since=11, forward=_dynamic_quantize_linear, cost=traffic),
)
