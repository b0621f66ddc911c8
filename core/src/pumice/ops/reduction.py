"""Reductions over axes, arg-reductions and running sums.

Axes come as an attribute or, in later opsets, as an input; none means all of them, or no reduction at all if
`noop_with_empty_axes`. Narrow floats are summed in float32. Over an empty axis a sum is 0, a product 1, a maximum the
lowest value of the type and a minimum the highest. Log-sum-exp subtracts the maximum first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np

from pumice.ops.channels import Blocked, Channels, Same, Site, Summed, Tie, except_axes, into, out
from pumice.ops.dtypes import wide
from pumice.ops.gradient import kept, namespace, spread
from pumice.ops.record import STOP, Array, Arrays, Forward, Node, Op, Outputs, Vjp, Wanted, traffic

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
        return (namespace(y).asarray(y).astype(x.dtype, copy=False),)

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


def if_empty(x: Array, value: float) -> dict[str, Any]:
    """The argument `initial` where there is nothing to reduce, and only there: CuPy does not know it."""
    return {} if x.size else {"initial": value}


def _maximum(x: Array, axes: Axes, keep: bool) -> Any:
    return x.max(axis=axes, keepdims=keep, **if_empty(x, _extreme(x, highest=False)))


def _minimum(x: Array, axes: Axes, keep: bool) -> Any:
    return x.min(axis=axes, keepdims=keep, **if_empty(x, _extreme(x, highest=True)))


def _l1(x: Array, axes: Axes, keep: bool) -> Any:
    return _sum(np.abs(x), axes, keep)


def _sum_square(x: Array, axes: Axes, keep: bool) -> Any:
    return _sum(np.square(x), axes, keep)


def _l2(x: Array, axes: Axes, keep: bool) -> Any:
    return np.sqrt(_sum_square(x, axes, keep))


def _log_sum(x: Array, axes: Axes, keep: bool) -> Any:
    return np.log(_sum(x, axes, keep))


def log_sum_exp(x: Array, axes: Axes, keep: bool) -> Any:
    peak = x.max(axis=axes, keepdims=True, **if_empty(x, -np.inf))
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


# --- gradients --------------------------------------------------------------------------------------------------------

Slope = Callable[[Any, Any, Any, Axes], Any]
"""(x, y, dy, axes) -> dx, where y and dy have kept the reduced axes with size one."""


def _vjp(slope: Slope, *, inputs: tuple[int, ...] = (1,), outputs: tuple[int, ...] = ()) -> Vjp:
    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        x, y, dy = inputs[0], outputs[0], grads[0]
        axes = axes_of(node, x, inputs[1] if len(inputs) > 1 else None)
        chosen = axes or ()
        dx = slope(x, kept(y, x.shape, chosen), kept(dy, x.shape, chosen), chosen)
        return (spread(dx, x.shape), *[None] * (len(inputs) - 1))

    return Vjp(run, wrt=(0,), inputs=inputs, outputs=outputs)


def _count(x: Any, axes: Axes) -> int:
    return math.prod(x.shape[a] for a in axes)


def _extreme_slope(x: Any, y: Any, dy: Any, axes: Axes) -> Any:
    """Equal elements share."""
    winners = x == y
    return dy * winners / winners.sum(axis=axes, keepdims=True)


def _product_slope(x: Any, y: Any, dy: Any, axes: Axes) -> Any:
    """The product of the others: also where one factor is zero, or several are."""
    absent = x == 0
    zeros = absent.sum(axis=axes, keepdims=True)
    filled = np.where(absent, 1, x)
    others = filled.prod(axis=axes, keepdims=True) / filled
    return dy * others * np.where(absent, zeros == 1, zeros == 0)


def _cumulative_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """The sum of an element's gradient over the results it is in: the same running sum in the other direction."""
    turned = attrs.evolve(node, attributes={**node.attributes, "reverse": 1 - node.get("reverse", 0)})
    return (_cumulative(np.cumsum, 0)(turned, grads[0], inputs[1])[0], None)


def _vjp_of(name: str) -> Vjp:
    return {
        "ReduceSum": _vjp(lambda x, y, dy, axes: dy),
        "ReduceMean": _vjp(lambda x, y, dy, axes: dy / _count(x, axes)),
        "ReduceProd": _vjp(_product_slope, inputs=(0, 1)),
        "ReduceMax": _vjp(_extreme_slope, inputs=(0, 1), outputs=(0,)),
        "ReduceMin": _vjp(_extreme_slope, inputs=(0, 1), outputs=(0,)),
        "ReduceL1": _vjp(lambda x, y, dy, axes: dy * np.sign(x), inputs=(0, 1)),
        "ReduceL2": _vjp(lambda x, y, dy, axes: dy * x / np.where(y == 0, 1, y), inputs=(0, 1), outputs=(0,)),
        "ReduceSumSquare": _vjp(lambda x, y, dy, axes: dy * 2 * x, inputs=(0, 1)),
        "ReduceLogSum": _vjp(lambda x, y, dy, axes: dy / np.exp(y), outputs=(0,)),
        "ReduceLogSumExp": _vjp(lambda x, y, dy, axes: dy * np.exp(x - y), inputs=(0, 1), outputs=(0,)),
    }[name]


TABLE: tuple[tuple[str, Callable[[Array, Axes, bool], Any], Callable[[Array], Any] | None], ...] = (
    ("ReduceSum", _sum, None), ("ReduceMean", _mean, None), ("ReduceProd", _product, None),
    ("ReduceMax", _maximum, None), ("ReduceMin", _minimum, None), ("ReduceL1", _l1, np.abs), ("ReduceL2", _l2, np.abs),
    ("ReduceSumSquare", _sum_square, np.square), ("ReduceLogSum", _log_sum, np.log),
    ("ReduceLogSumExp", log_sum_exp, None),
)  # fmt: skip

_CUMULATIVE = Vjp(_cumulative_vjp, wrt=(0,), inputs=(1,), outputs=())

# --- channels ---------------------------------------------------------------------------------------------------------


_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""Reductions to which a zero adds nothing."""


def _reduced_ties(site: Site) -> Iterator[Tie]:
    """A mean over channels becomes the mean over those left; the largest of fewer channels is another function."""
    rank = site.rank(0)
    axes = site.setting("axes", 1)
    if site.has(1) and axes is None:
        return
    given = [axis % rank for axis in axes or ()]
    along = set(given or (() if site.node.get("noop_with_empty_axes", 0) else range(rank)))
    reads = site.node.op_type
    place = 0
    for axis in range(rank):
        if axis not in along:
            yield Same(into(0, axis), out(0, place))
        elif reads in _SUMS:
            yield Summed(into(0, axis), mean=reads == "ReduceMean")
        else:
            yield Blocked(into(0, axis), f"{reads} over the channels depends on every one of them")
        place += axis not in along or bool(site.node.get("keepdims", 1))


def _cumulative_ties(site: Site) -> Iterator[Tie]:
    axis = site.constant(1)
    if axis is not None:
        along = int(axis.reshape(-1)[0]) % site.rank(0)
        yield from except_axes(site, [along], f"{site.node.op_type} runs along the channels")


def _arg_ties(site: Site) -> Iterator[Tie]:
    along = site.node.get("axis", 0) % site.rank(0)
    for axis in range(site.rank(0)):
        if axis == along:
            yield Blocked(into(0, axis), f"{site.node.op_type} gives the number of a channel")
        else:
            yield Same(into(0, axis), out(0, axis - (axis > along and not site.node.get("keepdims", 1))))


OPS = (
    *(
        Op(
            name,
            forward=reduction(function, pointwise),
            vjp=_vjp_of(name),
            cost=traffic,
            channels=Channels(_reduced_ties),
        )
        for name, function, pointwise in TABLE
    ),
    Op("ArgMax", forward=_arg(np.argmax), vjp=STOP, cost=traffic, channels=Channels(_arg_ties)),
    Op("ArgMin", forward=_arg(np.argmin), vjp=STOP, cost=traffic, channels=Channels(_arg_ties)),
    Op(
        "CumSum",
        since=11,
        forward=_cumulative(np.cumsum, 0),
        vjp=_CUMULATIVE,
        cost=traffic,
        channels=Channels(_cumulative_ties),
    ),
    Op("CumProd", since=26, forward=_cumulative(np.cumprod, 1), cost=traffic),
)
