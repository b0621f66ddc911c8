"""Functions of quantized tensors with another scale before and after them, as ONNX Runtime computes them.

    y = saturate(round(f(s_x (q_x - z_x)) / s_y) + z_y)

For a function of one element this is a table of 256 entries: what is computed here entry by entry is what ONNX Runtime
looks up. Averages are sums of real numbers in row-major order, rounded with their zero point; a softmax looks
exponentials up, taken relative to the largest of its row, and scales them to the number of steps that make one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.ops.dtypes import integer_range
from pumice.ops.quantize import quantize
from pumice.ops.record import Array, Node, Op, Outputs, traffic
from pumice.ops.reduction import if_empty
from pumice.ops.window import Window

MS = "com.microsoft"
ROOM = 5.0
"""Natural logarithm of the room that a sum of exponentials leaves below the largest float32."""


def _real(q: Array, scale: Array, zero_point: Array | None) -> Array:
    zero = np.int32(0) if zero_point is None else zero_point.astype(np.int32)
    return (q.astype(np.int32) - zero).astype(np.float32) * scale.astype(np.float32)


def _concat(node: Node, sy: Array, zy: Array, *triples: Array) -> Outputs:
    """Inputs: scale and zero point of the result, then values, scale and zero point of every part."""
    values, scales, zeros = triples[::3], triples[1::3], triples[2::3]
    parts = [quantize(_real(*part), sy, zy, zy.dtype) for part in zip(values, scales, zeros, strict=True)]
    return (np.concatenate(parts, axis=node.attributes["axis"]),)


def _where(
    node: Node, condition: Array, x: Array, sx: Array, zx: Array, y: Array, sy: Array, zy: Array, sz: Array, zz: Array
) -> Outputs:
    one, other = (quantize(_real(*part), sz, zz, zz.dtype) for part in ((x, sx, zx), (y, sy, zy)))
    return (np.where(condition, one, other),)


def _sigmoid(node: Node, x: Array, sx: Array, zx: Any, sy: Array, zy: Any = None) -> Outputs:
    y = 1.0 / (1.0 + np.exp(-_real(x, sx, zx).astype(np.float64)))
    return (quantize(y.astype(np.float32), sy, zy, x.dtype),)


def _leaky_relu(node: Node, x: Array, sx: Array, zx: Any, sy: Array, zy: Any = None) -> Outputs:
    real = _real(x, sx, zx)
    y = np.where(real >= 0, real, np.float32(node.get("alpha", 0.01)) * real)
    return (quantize(y, sy, zy, x.dtype),)


def _average_pool(node: Node, x: Array, sx: Array, zx: Any, sy: Array, zy: Any = None) -> Outputs:
    """The zero point is added before rounding. Padding counts if `count_include_pad`, also beyond the explicit one."""
    last = bool(node.get("channels_last", 0))
    real = _real(np.moveaxis(x, -1, 1) if last else x, sx, zx)
    window = Window.of(node, real.shape[2:], node.attributes["kernel_shape"])
    counts = window.taps if node.get("count_include_pad", 0) else _sums(np.ones_like(real[:1, :1]), window)
    levels = _sums(real, window) / np.float32(counts) / sy.astype(np.float32)
    y = np.rint(levels + np.float32(0 if zy is None else zy))
    pooled = np.clip(y, *integer_range(x.dtype)).astype(x.dtype)
    return (np.moveaxis(pooled, 1, -1) if last else pooled,)


def _sums(x: Array, window: Window) -> Array:
    padded = window.pad(x, 0)
    total = np.zeros((*x.shape[:2], *window.output), np.float32)
    for tap in window.slices():
        total += padded[tap]
    return total


def _softmax(node: Node, x: Array, sx: Array, zx: Any, sy: Array, zy: Any = None) -> Outputs:
    """Along one axis; before opset 13 along it and all axes after it."""
    axis = node.get("axis", -1 if node.attributes["opset"] >= 13 else 1)
    if node.attributes["opset"] >= 13:
        rows = np.moveaxis(x, axis, -1)
        return (np.moveaxis(_softmax_of_rows(rows, sx, sy, zy), -1, axis),)
    rows = x.reshape(*x.shape[: axis % x.ndim], -1)
    return (_softmax_of_rows(rows, sx, sy, zy).reshape(x.shape),)


def _softmax_of_rows(rows: Array, sx: Array, sy: Array, zy: Array | None) -> Array:
    """Along the last axis; sums are float32, element after element."""
    count = rows.shape[-1]
    room = float(np.log(np.finfo(np.float32).max / np.float32(max(count, 1))))
    shift = max(0.0, room - ROOM) / float(sx.reshape(()))
    table = np.exp((np.arange(-255, 1) + shift) * np.float64(sx.reshape(()))).astype(np.float32)
    below = rows.astype(np.int64) - rows.max(axis=-1, keepdims=True, **if_empty(rows, integer_range(rows.dtype)[0]))
    powers = table[below + 255]
    sums = np.zeros(rows.shape[:-1], np.float32)
    for index in range(count):
        sums += powers[..., index]
    steps = np.floor(np.float32(1.0) / sy.astype(np.float32))
    levels = np.rint(powers * steps / sums[..., None]) + np.float32(0 if zy is None else zy)
    return np.asarray(np.clip(levels, *integer_range(rows.dtype)), rows.dtype)


OPS = (
    Op("QLinearConcat", domain=MS, forward=_concat, cost=traffic),
    Op("QLinearWhere", domain=MS, forward=_where, cost=traffic),
    Op("QLinearSigmoid", domain=MS, forward=_sigmoid, cost=traffic),
    Op("QLinearLeakyRelu", domain=MS, forward=_leaky_relu, cost=traffic),
    Op("QLinearAveragePool", domain=MS, forward=_average_pool, cost=traffic),
    Op("QLinearSoftmax", domain=MS, forward=_softmax, cost=traffic),
)
