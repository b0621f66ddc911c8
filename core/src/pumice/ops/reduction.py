"""Reductions over axes, arg-reductions and running sums.

Axes come as an attribute or, in later opsets, as an input; none means all of them, or no reduction at all if
`noop_with_empty_axes`. Narrow floats are summed in float32. Over an empty axis a sum is 0, a product 1, a maximum the
lowest value of the type and a minimum the highest. Log-sum-exp subtracts the maximum first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Forward, Node, Op, Outputs, traffic

Axes = tuple[int, ...]


def axes_of(node: Node, x: Array, axes: Array | None) -> Axes | None:
    """The axes to reduce; None if the node leaves its input as it is."""
    chosen = axes.reshape(-1).tolist() if axes is not None else node.get("axes") or []
    if chosen:
        return tuple(a % x.ndim for a in chosen)
    return None if node.get("noop_with_empty_axes", 0) else tuple(range(x.ndim))


def reduction(function: Callable[[Array, Axes, bool], Any], pointwise: Callable[[Array], Any] | None = None) -> Forward:
    """A forward from `function(x, axes, keepdims)`; `pointwise` is what it does to single elements."""

    def forward(node: Node, x: Array, axes: Array | None = None) -> Outputs:
        chosen, data = axes_of(node, x, axes), wide(x)
        if chosen is None:
            y = data if pointwise is None else pointwise(data)
        else:
            y = function(data, chosen, bool(node.get("keepdims", 1)))
        return (np.asarray(y).astype(x.dtype, copy=False),)

    return forward


def _sum(x: Array, axes: Axes, keep: bool) -> Any:
    return x.sum(axis=axes, keepdims=keep, dtype=x.dtype)


def _mean(x: Array, axes: Axes, keep: bool) -> Any:
    return x.mean(axis=axes, keepdims=keep)


def _product(x: Array, axes: Axes, keep: bool) -> Any:
    return x.prod(axis=axes, keepdims=keep, dtype=x.dtype)


def _extreme(x: Array, highest: bool) -> Any:
    if x.dtype.kind == "f":
        return np.inf if highest else -np.inf
    if x.dtype.kind == "b":
        return highest
    return np.iinfo(x.dtype).max if highest else np.iinfo(x.dtype).min


def _maximum(x: Array, axes: Axes, keep: bool) -> Any:
    return x.max(axis=axes, keepdims=keep, initial=_extreme(x, highest=False))


def _minimum(x: Array, axes: Axes, keep: bool) -> Any:
    return x.min(axis=axes, keepdims=keep, initial=_extreme(x, highest=True))


def _l1(x: Array, axes: Axes, keep: bool) -> Any:
    return _sum(np.abs(x), axes, keep)


def _sum_square(x: Array, axes: Axes, keep: bool) -> Any:
    return _sum(np.square(x), axes, keep)


def _l2(x: Array, axes: Axes, keep: bool) -> Any:
    return np.sqrt(_sum_square(x, axes, keep))


def _log_sum(x: Array, axes: Axes, keep: bool) -> Any:
    return np.log(_sum(x, axes, keep))


def log_sum_exp(x: Array, axes: Axes, keep: bool) -> Any:
    peak = x.max(axis=axes, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0)
    y = np.log(np.exp(x - peak).sum(axis=axes, keepdims=True)) + peak
    return y if keep else y.squeeze(axis=axes)


def _arg(function: Any) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        axis = node.get("axis", 0)
        if node.get("select_last_index", 0):
            y = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            y = function(x, axis=axis)
        return (np.expand_dims(y, axis) if node.get("keepdims", 1) else y,)

    return forward


def _cumulative(function: Any, start: int) -> Forward:
    """Running sum or product; `exclusive` leaves the element itself out, `reverse` runs from the end."""

    def forward(node: Node, x: Array, axis: Array) -> Outputs:
        along = int(axis)
        data = np.flip(x, along) if node.get("reverse", 0) else x
        if node.get("exclusive", 0):
            data = np.roll(data, 1, axis=along)
            data[(slice(None),) * (along % x.ndim) + (slice(0, 1),)] = start
        y = function(wide(data), axis=along, dtype=wide(data).dtype).astype(x.dtype, copy=False)
        return (np.flip(y, along) if node.get("reverse", 0) else y,)

    return forward


TABLE: tuple[tuple[str, Callable[[Array, Axes, bool], Any], Callable[[Array], Any] | None], ...] = (
    ("ReduceSum", _sum, None), ("ReduceMean", _mean, None), ("ReduceProd", _product, None),
    ("ReduceMax", _maximum, None), ("ReduceMin", _minimum, None), ("ReduceL1", _l1, np.abs), ("ReduceL2", _l2, np.abs),
    ("ReduceSumSquare", _sum_square, np.square), ("ReduceLogSum", _log_sum, np.log),
    ("ReduceLogSumExp", log_sum_exp, None),
)  # fmt: skip

OPS = (
    *(Op(name, forward=reduction(function, pointwise), cost=traffic) for name, function, pointwise in TABLE),
    Op("ArgMax", forward=_arg(np.argmax), cost=traffic),
    Op("ArgMin", forward=_arg(np.argmin), cost=traffic),
    Op("CumSum", since=11, forward=_cumulative(np.cumsum, 0), cost=traffic),
    Op("CumProd", since=26, forward=_cumulative(np.cumprod, 1), cost=traffic),
)
