"""Softmax along an axis: exp(x - max) / sum exp(x - max); its logarithm; and Hardmax, one at the first maximum.

Before opset 13 the input was first flattened to two axes at `axis` (default 1) and normalised over the whole second
one; since then only `axis` (default -1) is normalised. Narrow floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pumice.ops.channels import Channels, Site, Tie, except_axes
from pumice.ops.dtypes import wide
from pumice.ops.record import STOP, Array, Arrays, Forward, Node, Op, Outputs, Vjp, Wanted, traffic


def softmax(x: Array, axis: int = -1) -> Any:
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax(x: Array, axis: int = -1) -> Any:
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def hardmax(x: Array, axis: int = -1) -> Any:
    y = np.zeros_like(x)
    np.put_along_axis(y, np.expand_dims(x.argmax(axis=axis), axis), 1, axis=axis)
    return y


def _along_axis(function: Callable[[Array, int], Any]) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        return (function(wide(x), node.get("axis", -1)).astype(x.dtype, copy=False),)

    return forward


def _flattened(function: Callable[[Array, int], Any]) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        axis = node.get("axis", 1) % max(x.ndim, 1)
        rows = wide(x).reshape(int(np.prod(x.shape[:axis])), -1)
        return (function(rows, -1).reshape(x.shape).astype(x.dtype, copy=False),)

    return forward


def softmax_vjp(y: Any, dy: Any, axis: int = -1) -> Any:
    """y (dy - sum of y dy)"""
    dx = y * dy
    return dx - y * dx.sum(axis=axis, keepdims=True)


def _log_softmax_vjp(y: Any, dy: Any, axis: int) -> Any:
    return dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)


def _vjp_along_axis(function: Callable[[Any, Any, int], Any]) -> Vjp:
    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        return (function(outputs[0], grads[0], node.get("axis", -1)),)

    return Vjp(run, inputs=())


def _vjp_flattened(function: Callable[[Any, Any, int], Any]) -> Vjp:
    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        y = outputs[0]
        rows = (int(np.prod(y.shape[: node.get("axis", 1) % max(y.ndim, 1)])), -1)
        return (function(y.reshape(rows), grads[0].reshape(rows), -1).reshape(y.shape),)

    return Vjp(run, inputs=())


_FUNCTIONS = (("Softmax", softmax, softmax_vjp), ("LogSoftmax", log_softmax, _log_softmax_vjp))

# --- channels ---------------------------------------------------------------------------------------------------------


def _channel_ties(site: Site) -> Iterator[Tie]:
    """The axis (before opset 13: it and all that follow) that is normalised, or searched for its largest, stays."""
    rank = site.rank(0)
    old = site.node.opset < 13
    axis = site.node.get("axis", 1 if old else -1) % rank if rank else 0
    yield from except_axes(
        site, range(axis, rank if old else axis + 1), f"{site.node.op_type} compares the channels with each other"
    )


OPS = tuple(
    op
    for name, function, vjp in (*_FUNCTIONS, ("Hardmax", hardmax, None))
    for op in (
        Op(
            name,
            since=1,
            until=12,
            forward=_flattened(function),
            vjp=_vjp_flattened(vjp) if vjp else STOP,
            cost=traffic,
            channels=Channels(_channel_ties),
        ),
        Op(
            name,
            since=13,
            forward=_along_axis(function),
            vjp=_vjp_along_axis(vjp) if vjp else STOP,
            cost=traffic,
            channels=Channels(_channel_ties),
        ),
    )
)
