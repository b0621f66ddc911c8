"""Pooling: a reduction over sliding windows of each channel.

    MaxPool      max of the window                    padding never wins
    AveragePool  sum of the window / elements in it   padding counts only if `count_include_pad`
    LpPool       (sum |x|^p)^(1/p)

Computed tap by tap over whole images. The elements that an average divides by are a product of counts per axis: how
many taps of window o fall on data (or on data and explicit padding; never beyond it, where ceil mode may reach).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from pumice.ops.channels import SECOND_AXIS
from pumice.ops.dtypes import wide
from pumice.ops.gradient import moved, namespace, spread
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic
from pumice.ops.window import Window


def _accumulate(function: Callable[..., Any], padded: Array, window: Window) -> Array:
    total: Array | None = None
    for where in window.slices():
        part = padded[where]
        total = part.copy() if total is None else function(total, part, out=total)
    assert total is not None
    return total


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -math.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _max_pool(node: Node, x: Array) -> Outputs:
    data = wide(x)
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    padded = window.pad(data, _lowest(data.dtype))
    y = _accumulate(np.maximum, padded, window).astype(x.dtype, copy=False)
    return (y, _max_indices(node, padded, window)) if node.wants(1) else (y,)


def _max_indices(node: Node, padded: Array, window: Window) -> Array:
    """Flat index, over the whole input, of the first maximum of each window."""
    batch, channels = padded.shape[:2]
    windows = window.views(padded).reshape(batch, channels, window.taps, *window.output)
    taps = np.unravel_index(windows.argmax(axis=2), window.kernel)
    rank = len(window.size)
    position = []
    for axis in range(rank):
        start = namespace(padded).arange(window.output[axis]) * window.strides[axis] - window.before[axis]
        start = start.reshape(-1, *(1,) * (rank - 1 - axis))
        position.append(start + taps[axis] * window.dilations[axis])
    flat = np.ravel_multi_index(tuple(position), window.size, order="F" if node.get("storage_order", 0) else "C")
    image = namespace(padded).arange(batch * channels).reshape(batch, channels, *(1,) * rank) * math.prod(window.size)
    indices: Array = flat + image
    return indices.astype(np.int64, copy=False)


def _counts(window: Window, include_pad: bool, xp: Any) -> Any:
    """How many elements each output averages, of shape `window.output`, in a namespace."""
    axes = []
    for n, k, s, d, p, q, o in zip(
        window.size, window.kernel, window.strides, window.dilations, window.before, window.after, window.output,
        strict=True,
    ):  # fmt: skip
        position = xp.arange(o)[:, None] * s + xp.arange(k) * d - p
        low, high = (-p, n + q) if include_pad else (0, n)
        axes.append(((position >= low) & (position < high)).sum(axis=1))
    return reduce(lambda counts, axis: counts[..., None] * axis, axes)


def _average_pool(node: Node, x: Array) -> Outputs:
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    total = _accumulate(np.add, window.pad(wide(x), 0), window)
    counts = _counts(window, bool(node.get("count_include_pad", 0)), namespace(total))
    return ((total / counts.astype(total.dtype)).astype(x.dtype),)


def _lp_pool(node: Node, x: Array) -> Outputs:
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    p = node.get("p", 2)
    total = _accumulate(np.add, window.pad(np.abs(wide(x)) ** p, 0), window)
    return ((total ** (1 / p)).astype(x.dtype),)


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_average(node: Node, x: Array) -> Outputs:
    return (wide(x).mean(axis=_spatial(x), keepdims=True).astype(x.dtype),)


def _global_max(node: Node, x: Array) -> Outputs:
    return (x.max(axis=_spatial(x), keepdims=True),)


def _global_lp(node: Node, x: Array) -> Outputs:
    p = node.get("p", 2)
    return (((np.abs(wide(x)) ** p).sum(axis=_spatial(x), keepdims=True) ** (1 / p)).astype(x.dtype),)


def _max_unpool(node: Node, x: Array, indices: Array, shape: Array | None = None) -> Outputs:
    """Every maximum back at the flat index it came from, zeros elsewhere."""
    kernel = node.attributes["kernel_shape"]
    strides = node.get("strides") or [1] * len(kernel)
    pads = node.get("pads") or [0] * 2 * len(kernel)
    sizes = [
        (n - 1) * s + k - p - q
        for n, s, k, p, q in zip(x.shape[2:], strides, kernel, pads[: len(kernel)], pads[len(kernel) :], strict=True)
    ]
    inferred = namespace(x).zeros((*x.shape[:2], *sizes), x.dtype)
    inferred.reshape(-1)[indices.reshape(-1)] = x.reshape(-1)
    if shape is None:
        return (inferred,)
    y = namespace(x).zeros(tuple(shape.tolist()), x.dtype)
    y[tuple(slice(n) for n in inferred.shape)] = inferred
    return (y,)


# --- gradients --------------------------------------------------------------------------------------------------------


def _max_pool_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """To the first maximum of each window, tap by tap."""
    x, y, dy = inputs[0], outputs[0], grads[0]
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    padded = window.pad(x, _lowest(x.dtype))
    total, open_ = np.zeros_like(padded), np.ones_like(y, dtype=bool)
    for where in window.slices():
        hit = open_ & (padded[where] == y)
        total[where] += dy * hit
        open_ &= ~hit
    return (total[window.interior],)


def _spread_windows(x: Any, window: Window, each: Any) -> Any:
    """The gradient of a sum over windows: every element gets that of all windows it is in."""
    total = np.zeros_like(window.pad(x, 0))
    for where in window.slices():
        total[where] += each
    return total[window.interior]


def _average_pool_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    window = Window.of(node, inputs[0].shape[2:], node.attributes["kernel_shape"])
    counts = _counts(window, bool(node.get("count_include_pad", 0)), namespace(grads[0])).astype(grads[0].dtype)
    return (_spread_windows(inputs[0], window, grads[0] / counts),)


def _lp_slope(x: Any, p: float) -> Any:
    return np.sign(x) * np.abs(x) ** (p - 1)


def _lp_pool_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    (x,), p = inputs, node.get("p", 2)
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    return (_spread_windows(x, window, _per_norm(outputs[0], grads[0], p)) * _lp_slope(x, p),)


def _per_norm(y: Any, dy: Any, p: float) -> Any:
    """dy / y^(p - 1), zero where the norm is."""
    return np.where(y == 0, 0, dy / np.where(y == 0, 1, y) ** (p - 1))


def _global_average_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x = inputs[0]
    return (spread(grads[0] / math.prod(x.shape[2:]), x.shape),)


def _global_max_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Equal maxima share."""
    winners = inputs[0] == outputs[0]
    return (grads[0] * winners / winners.sum(axis=_spatial(inputs[0]), keepdims=True),)


def _global_lp_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    p = node.get("p", 2)
    return (_per_norm(outputs[0], grads[0], p) * _lp_slope(inputs[0], p),)


def _pool_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    taps = math.prod(node.attributes["kernel_shape"])
    return OpCost(macs=elements(outputs[0]) * taps, bytes=traffic(node, inputs, outputs).bytes)


def _global_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    return OpCost(macs=elements(inputs[0]), bytes=traffic(node, inputs, outputs).bytes)


OPS = (
    Op("MaxPool", forward=_max_pool, vjp=Vjp(_max_pool_vjp, outputs=(0,)), cost=_pool_cost, channels=SECOND_AXIS),
    Op(
        "AveragePool",
        forward=_average_pool,
        vjp=Vjp(_average_pool_vjp, inputs=(), outputs=()),
        cost=_pool_cost,
        channels=SECOND_AXIS,
    ),
    Op("LpPool", since=2, forward=_lp_pool, vjp=Vjp(_lp_pool_vjp), cost=_pool_cost, channels=SECOND_AXIS),
    Op("GlobalMaxPool", forward=_global_max, vjp=Vjp(_global_max_vjp), cost=_global_cost, channels=SECOND_AXIS),
    Op(
        "GlobalAveragePool",
        forward=_global_average,
        vjp=Vjp(_global_average_vjp, inputs=(), outputs=()),
        cost=_global_cost,
        channels=SECOND_AXIS,
    ),
    Op("GlobalLpPool", since=2, forward=_global_lp, vjp=Vjp(_global_lp_vjp), cost=_global_cost, channels=SECOND_AXIS),
    Op("MaxUnpool", since=9, forward=_max_unpool, vjp=moved(_max_unpool), cost=traffic),
)
