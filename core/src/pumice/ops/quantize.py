"""Quantization of tensors: q = saturate(round(x / scale) + zero_point) and back, x = (q - zero_point) scale.

Rounding is half to even. Scales are one number, one per index of `axis`, or one per block of `block_size` along `axis`.
Integer types of 2, 4, 8 and 16 bits saturate at their range; float8 types saturate or overflow as `saturate` says;
float4 and float6 types always saturate. The quotient is taken in float32, or in the wider or explicitly asked type
(`precision`); like ONNX Runtime, a float16 scale does not make the division itself narrow, so that integers agree with
it bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.errors import ModelError
from pumice.ops.cast import cast
from pumice.ops.dtypes import integer_range, is_float, numpy_dtype
from pumice.ops.record import Array, Node, Op, Outputs, traffic


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
    return np.asarray(np.clip(np.rint(quotient).astype(np.float64) + offset, low, high)).astype(dtype)


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
    scale = np.float32((high - low) / np.float32(255))
    scale = scale if scale > 0 else np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return np.asarray(scale), np.asarray(zero_point)


def _dynamic_quantize_linear(node: Node, x: Array) -> Outputs:
    scale, zero_point = dynamic_parameters(x)
    return quantize(x, scale, zero_point, np.dtype(np.uint8)), scale, zero_point


OPS = (
    *(
        Op(name, since=since, domain=domain, forward=forward, cost=traffic)
        for domain, since in (("", 10), ("com.microsoft", 1))
        for name, forward in (("QuantizeLinear", _quantize_linear), ("DequantizeLinear", _dequantize_linear))
    ),
    Op("DynamicQuantizeLinear", since=11, forward=_dynamic_quantize_linear, cost=traffic),
)
