"""Arithmetic on quantized tensors, exact in integers.

With levels a - za and b - zb, a product or convolution is an integer sum; the requantized result is

    y = saturate(round(sum * (sa sb / sy)) + zy)

where the multiplier is computed in float32, as ONNX Runtime does. Sums of 8-bit products are made by BLAS in float64,
which holds them exactly (see `matmul`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.conv import add_bias, conv_cost, convolve
from pumice.ops.dtypes import integer_range
from pumice.ops.matmul import product
from pumice.ops.quantize import dynamic_parameters, quantize
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic
from pumice.ops.window import Window


def _levels(q: Array, zero_point: Array | None, axis: int | None = None) -> Array:
    """Of `q - zero_point`, as float64, which holds the integers exactly; a vector zero point belongs to one axis."""
    levels = q.astype(np.float64)
    if zero_point is None:
        return levels
    zero = zero_point.astype(np.float64)
    if zero.size == 1 or axis is None or zero.ndim > 1:
        return levels - (zero.reshape(()) if zero.size == 1 else zero)
    return levels - zero.reshape([-1 if i == axis % q.ndim else 1 for i in range(q.ndim)])


def _int32(sums: Array) -> Array:
    """Exact float64 sums as int32, wrapping as C does."""
    return sums.astype(np.int64).astype(np.int32)


def requantize(sums: Array, multiplier: Array, zero_point: Array) -> Array:
    low, high = integer_range(zero_point.dtype)
    scaled = np.rint(_int32(sums).astype(np.float32) * multiplier.astype(np.float32))
    return np.clip(scaled.astype(np.float64) + zero_point.astype(np.float64), low, high).astype(zero_point.dtype)


def _column(scale: Array, rank: int) -> Array:
    """A per-row scale of a matrix, or one number."""
    return scale.reshape(-1, 1) if scale.ndim == 1 and scale.size > 1 and rank > 1 else scale


def _matmul_integer(node: Node, a: Array, b: Array, za: Array | None = None, zb: Array | None = None) -> Outputs:
    return (_int32(product(_levels(a, za, -2), _levels(b, zb, -1))),)


def _qlinear_matmul(
    node: Node, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array, sy: Array, zy: Array
) -> Outputs:
    sums = product(_levels(a, za, -2), _levels(b, zb, -1))
    multiplier = _column(sa, a.ndim).astype(np.float32) * sb.astype(np.float32) / sy.astype(np.float32)
    return (requantize(sums, multiplier, zy),)


def _conv_integer(node: Node, x: Array, w: Array, zx: Array | None = None, zw: Array | None = None) -> Outputs:
    window = Window.of(node, x.shape[2:], w.shape[2:])
    return (_int32(convolve(_levels(x, zx), _levels(w, zw, 0), window, node.get("group", 1))),)


def _qlinear_conv(
    node: Node,
    x: Array,
    sx: Array,
    zx: Array,
    w: Array,
    sw: Array,
    zw: Array,
    sy: Array,
    zy: Array,
    b: Array | None = None,
) -> Outputs:
    """Padding is the zero point, that is level zero. The bias is int32 in units of sx sw."""
    window = Window.of(node, x.shape[2:], w.shape[2:])
    sums = convolve(_levels(x, zx), _levels(w, zw, 0), window, node.get("group", 1))
    sums = add_bias(sums, None if b is None else b.astype(np.float64))
    multiplier = sx.astype(np.float32) * sw.astype(np.float32) / sy.astype(np.float32)
    return (requantize(sums, multiplier.reshape(-1, *(1,) * len(window.size)), zy),)


def _qgemm(
    node: Node,
    a: Array,
    sa: Array,
    za: Array,
    b: Array,
    sb: Array,
    zb: Array,
    c: Array | None = None,
    sy: Array | None = None,
    zy: Array | None = None,
) -> Outputs:
    """ONNX Runtime's quantized Gemm; without an output scale the result stays float."""
    left = _levels(a, za).T if node.get("transA", 0) else _levels(a, za)
    right = _levels(b, zb, -1 if not node.get("transB", 0) else 0)
    sums = product(left, right.T if node.get("transB", 0) else right)
    return finish_gemm(node, sums, sa, sb, c, sy, zy)


def finish_gemm(
    node: Node, sums: Array, sa: Array, sb: Array, c: Array | None, sy: Array | None, zy: Array | None
) -> Outputs:
    """What QGemm makes of its exact integer sums."""
    sums = sums if c is None else sums + c
    multiplier = np.float32(node.get("alpha", 1.0)) * sa.astype(np.float32) * sb.astype(np.float32)
    if sy is None or zy is None:
        return (sums.astype(np.float32) * multiplier,)
    return (requantize(sums, multiplier / sy.astype(np.float32), zy),)


def _dequantized(q: Array, scale: Array, zero_point: Array | None) -> Array:
    return _levels(q, zero_point).astype(np.float32) * scale.astype(np.float32)


def _qlinear_add(
    node: Node, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, sy: Array, zy: Any = None
) -> Outputs:
    """All zero points are folded into one offset first, as ONNX Runtime does; other orders round differently."""
    by_a, by_b = sa / sy, sb / sy
    zero_a, zero_b, zero_y = (np.float32(0 if z is None else z) for z in (za, zb, zy))
    offset = zero_y - _fused(zero_a, by_a, by_b * zero_b)
    y = np.rint(_fused(a, by_a, _fused(b, by_b, offset)))
    return (np.clip(y, *integer_range(a.dtype)).astype(a.dtype),)


def _fused(x: Any, factor: Any, addend: Any) -> Any:
    """The float32 multiply-add of levels that rounds once, as processors do."""
    return (x.astype(np.float64) * np.float64(factor) + addend.astype(np.float64)).astype(np.float32)


def _qlinear_mul(
    node: Node, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, sy: Array, zy: Any = None
) -> Outputs:
    return (quantize(_dequantized(a, sa, za) * _dequantized(b, sb, zb), sy, zy, a.dtype),)


def _qlinear_global_average(node: Node, x: Array, sx: Array, zx: Array, sy: Array, zy: Array) -> Outputs:
    axes = tuple(range(1, x.ndim - 1)) if node.get("channels_last", 0) else tuple(range(2, x.ndim))
    count = np.prod([x.shape[a] for a in axes])
    multiplier = sx.astype(np.float32) / (sy.astype(np.float32) * np.float32(count))
    return (requantize(_levels(x, zx).sum(axis=axes, keepdims=True), multiplier, zy),)


def _dynamic_quantize_matmul(
    node: Node, a: Array, b: Array, sb: Array, zb: Array | None = None, bias: Array | None = None
) -> Outputs:
    """A float matrix, quantized on the spot, by a quantized one."""
    scale, zero_point = dynamic_parameters(a)
    q = quantize(a, scale, zero_point, np.dtype(np.uint8))
    y = _int32(product(_levels(q, zero_point), _levels(b, zb, -1))).astype(np.float32) * (scale * sb)
    return (y if bias is None else y + bias,)


def _matmul_integer_to_float(
    node: Node, a: Array, b: Array, sa: Array, sb: Array, za: Any = None, zb: Any = None, c: Any = None
) -> Outputs:
    y = _int32(product(_levels(a, za, -2), _levels(b, zb, -1))).astype(np.float32) * (_column(sa, a.ndim) * sb)
    return (y if c is None else y + c,)


def _unpacked(packed: Array, bits: int) -> Any:
    """Bytes (..., n) as their fields (..., n * 8 / bits), lowest bits first."""
    fields = [packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(fields, axis=-1).reshape(*packed.shape[:-1], -1)


def _matmul_nbits(
    node: Node, a: Array, b: Array, scales: Array, zeros: Array | None = None, order: Any = None, bias: Any = None
) -> Outputs:
    """A float matrix by one of 2, 4 or 8 bits, quantized in blocks along the depth: b is (N, blocks, bytes)."""
    depth, width, bits = node.attributes["K"], node.attributes["N"], node.get("bits", 4)
    if order is not None:
        raise UnsupportedOp(f"{node} has a group index, which pumice does not read")
    levels = _unpacked(b.reshape(width, -1, b.shape[-1]), bits).astype(np.float32)
    blocks = levels.shape[1]
    middle: Any = np.float32(2 ** (bits - 1))
    if zeros is not None:
        points = _unpacked(zeros.reshape(width, -1), bits)[:, :blocks] if zeros.dtype == np.uint8 else zeros
        middle = points.reshape(width, blocks, 1).astype(np.float32)
    weights = ((levels - middle) * scales.reshape(width, blocks, 1)).reshape(width, -1)[:, :depth]
    y = product(a, weights.T.astype(a.dtype)).astype(a.dtype)
    return (y if bias is None else y + bias,)


def _nbits_cost(node: Node, inputs: Any, outputs: Any) -> OpCost:
    depth, width = node.attributes["K"], node.attributes["N"]
    macs = elements(outputs[0]) * depth
    moved = elements(inputs[1]) + 4 * (elements(inputs[0]) + elements(inputs[2]) + elements(outputs[0]))
    return OpCost(macs=macs, params=depth * width, bytes=moved)


def _cost_at(a: int, b: int) -> Any:
    """The cost of a matrix product whose operands are these inputs."""

    def cost(node: Node, inputs: Any, outputs: Any) -> OpCost:
        left, right = inputs[a], inputs[b]
        depth = left[0] if node.get("transA", 0) else left[-1]
        return OpCost(
            macs=elements(outputs[0]) * depth,
            params=elements(right) if len(right) <= 2 else 0,
            bytes=traffic(node, inputs, outputs).bytes,
        )

    return cost


def _qlinear_conv_cost(node: Node, inputs: Any, outputs: Any) -> OpCost:
    bias: tuple[Shape, ...] = tuple(inputs[8:9])
    return conv_cost(node, (inputs[0], inputs[3], *bias), outputs)


MS = "com.microsoft"
OPS = (
    Op("MatMulInteger", since=10, forward=_matmul_integer, cost=_cost_at(0, 1)),
    Op("QLinearMatMul", since=10, forward=_qlinear_matmul, cost=_cost_at(0, 3)),
    Op("ConvInteger", since=10, forward=_conv_integer, cost=lambda n, i, o: conv_cost(n, i[:2], o)),
    Op("QLinearConv", since=10, forward=_qlinear_conv, cost=_qlinear_conv_cost),
    Op("QGemm", domain=MS, forward=_qgemm, cost=_cost_at(0, 3)),
    Op("QLinearAdd", domain=MS, forward=_qlinear_add, cost=traffic),
    Op("QLinearMul", domain=MS, forward=_qlinear_mul, cost=traffic),
    Op("QLinearGlobalAveragePool", domain=MS, forward=_qlinear_global_average, cost=traffic),
    Op("DynamicQuantizeMatMul", domain=MS, forward=_dynamic_quantize_matmul, cost=_cost_at(0, 1)),
    Op("MatMulNBits", domain=MS, forward=_matmul_nbits, cost=_nbits_cost),
    Op("MatMulIntegerToFloat", domain=MS, forward=_matmul_integer_to_float, cost=_cost_at(0, 1)),
)
