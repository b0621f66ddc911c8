"""Indexing by tensors: gathers read y[i] = x[index(i)], scatters write y[index(i)] (op)= update[i] into a copy of x.

Negative indices count from the end. Scatters with a reduction (add, mul, max, min) apply every update, in order, even
where indices repeat.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.ops.record import Array, Node, Op, Outputs, traffic


def _gather(node: Node, x: Array, indices: Array) -> Outputs:
    return (np.take(x, indices, axis=node.get("axis", 0)),)


def _gather_elements(node: Node, x: Array, indices: Array) -> Outputs:
    return (x[_along(indices, node.get("axis", 0) % x.ndim, x.shape)],)


def _along(indices: Array, axis: int, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The full index of each element when `indices` replaces its own position along one axis."""
    grid: list[Any] = list(np.ogrid[tuple(map(slice, indices.shape))])
    grid[axis] = np.where(indices < 0, indices + shape[axis], indices)
    return tuple(grid)


def _gather_nd(node: Node, x: Array, indices: Array) -> Outputs:
    batch = node.get("batch_dims", 0)
    return (x[(*_batch_grid(indices, batch), *np.moveaxis(indices, -1, 0))],)


def _batch_grid(indices: Array, batch: int) -> list[Array]:
    """Positions along the leading batch axes, shaped to broadcast with the rest of the indices."""
    lead = indices.shape[:-1]
    return [np.arange(lead[i]).reshape([-1 if j == i else 1 for j in range(len(lead))]) for i in range(batch)]


_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(x: Array, where: Any, updates: Array, reduction: str) -> Array:
    y = x.copy()
    if reduction == "none":
        y[where] = updates
    else:
        _REDUCTIONS[reduction].at(y, where, updates)
    return y


def _scatter_elements(node: Node, x: Array, indices: Array, updates: Array) -> Outputs:
    where = np.broadcast_arrays(*_along(indices, node.get("axis", 0) % x.ndim, x.shape))
    return (_scatter(x, tuple(where), updates, node.get("reduction", "none")),)


def _scatter_nd(node: Node, x: Array, indices: Array, updates: Array) -> Outputs:
    return (_scatter(x, tuple(np.moveaxis(indices, -1, 0)), updates, node.get("reduction", "none")),)


def _tensor_scatter(node: Node, cache: Array, update: Array, write: Array | None = None) -> Outputs:
    """Writes a block of each batch entry's sequence at its own position; `circular` wraps around."""
    axis = node.get("axis", -2) % cache.ndim
    y = np.moveaxis(cache.copy(), axis, 1)
    block = np.moveaxis(update, axis, 1)
    start = np.zeros(len(cache), np.int64) if write is None else write
    position = start[:, None] + np.arange(block.shape[1])
    if node.get("mode", "linear") == "circular":
        position = position % y.shape[1]
    y[np.arange(len(cache))[:, None], position] = block
    return (np.moveaxis(y, 1, axis),)


def _one_hot(node: Node, indices: Array, depth: Array, values: Array) -> Outputs:
    """Indices outside [-depth, depth) give a row of `off`."""
    count = int(depth.reshape(-1)[0])
    axis = node.get("axis", -1)
    wrapped = np.where(indices < 0, indices + count, indices)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    classes = np.arange(count).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return (np.where(np.expand_dims(wrapped, axis) == classes, values[1], values[0]),)


def _compress(node: Node, x: Array, condition: Array) -> Outputs:
    axis = node.get("axis")
    size = x.size if axis is None else x.shape[axis]
    chosen = np.flatnonzero(condition[:size])
    return (np.take(x.reshape(-1), chosen) if axis is None else np.take(x, chosen, axis=axis),)


OPS = (
    Op("Gather", forward=_gather, cost=traffic),
    Op("GatherElements", since=11, forward=_gather_elements, cost=traffic),
    Op("GatherND", since=11, forward=_gather_nd, cost=traffic),
    Op("Scatter", since=9, forward=_scatter_elements, cost=traffic),
    Op("ScatterElements", since=11, forward=_scatter_elements, cost=traffic),
    Op("ScatterND", since=11, forward=_scatter_nd, cost=traffic),
    Op("TensorScatter", since=24, forward=_tensor_scatter, cost=traffic),
    Op("OneHot", since=9, forward=_one_hot, cost=traffic),
    Op("Compress", since=9, forward=_compress, cost=traffic),
)
