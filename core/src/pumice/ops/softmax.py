"""Softmax along an axis: exp(x - max) / sum exp(x - max); its logarithm; and Hardmax, one at the first maximum.

Before opset 13 the input was first flattened to two axes at `axis` (default 1) and normalised over the whole second
one; since then only `axis` (default -1) is normalised. Narrow floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Forward, Node, Op, Outputs, traffic


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


OPS = tuple(
    op
    for name, function in (("Softmax", softmax), ("LogSoftmax", log_softmax), ("Hardmax", hardmax))
    for op in (
        Op(name, since=1, until=12, forward=_flattened(function), cost=traffic),
        Op(name, since=13, forward=_along_axis(function), cost=traffic),
    )
)
