"""Indexing by tensors: gathers read y[i] = x[index(i)], scatters write y[index(i)] (op)= update[i] into a copy of x.

Negative indices count from the end. Scatters with a reduction (add, mul, max, min) apply every update, in order, even
where indices repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.channels import Blocked, Channels, Edit, Kept, Same, Site, Tie, into, out
from pumice.ops.gradient import add_rows, moved, namespace
from pumice.ops.record import Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic


def _gather(node: Node, x: Array, indices: Array) -> Outputs:
    return (np.take(x, indices, axis=node.get("axis", 0)),)


def _gather_elements(node: Node, x: Array, indices: Array) -> Outputs:
    return (x[_along(indices, node.get("axis", 0) % x.ndim, x.shape)],)


def _along(indices: Array, axis: int, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The full index of each element when `indices` replaces its own position along one axis."""
    grid: list[Any] = list(namespace(indices).ogrid[tuple(map(slice, indices.shape))])
    grid[axis] = np.where(indices < 0, indices + shape[axis], indices)
    return tuple(grid)


def _gather_nd(node: Node, x: Array, indices: Array) -> Outputs:
    batch = node.get("batch_dims", 0)
    return (x[(*_batch_grid(indices, batch), *np.moveaxis(indices, -1, 0))],)


def _batch_grid(indices: Array, batch: int) -> list[Array]:
    """Positions along the leading batch axes, shaped to broadcast with the rest of the indices."""
    lead = indices.shape[:-1]
    return [
        namespace(indices).arange(lead[i]).reshape([-1 if j == i else 1 for j in range(len(lead))])
        for i in range(batch)
    ]


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
    xp = namespace(cache)
    start = xp.zeros(len(cache), np.int64) if write is None else write
    position = start[:, None] + xp.arange(block.shape[1])
    if node.get("mode", "linear") == "circular":
        position = position % y.shape[1]
    y[xp.arange(len(cache))[:, None], position] = block
    return (np.moveaxis(y, 1, axis),)


def _one_hot(node: Node, indices: Array, depth: Array, values: Array) -> Outputs:
    """Indices outside [-depth, depth) give a row of `off`."""
    count = int(depth.reshape(-1)[0])
    axis = node.get("axis", -1)
    wrapped = np.where(indices < 0, indices + count, indices)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    classes = namespace(indices).arange(count).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return (np.where(np.expand_dims(wrapped, axis) == classes, values[1], values[0]),)


def _compress(node: Node, x: Array, condition: Array) -> Outputs:
    axis = node.get("axis")
    size = x.size if axis is None else x.shape[axis]
    chosen = np.flatnonzero(condition[:size])
    return (np.take(x.reshape(-1), chosen) if axis is None else np.take(x, chosen, axis=axis),)


# --- gradients --------------------------------------------------------------------------------------------------------


def _gather_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Each row of a table gets the sum over the places that read it."""
    (x, indices), dy = inputs, grads[0]
    axis, count = node.get("axis", 0) % x.ndim, x.shape[node.get("axis", 0)]
    flat = np.where(indices < 0, indices + count, indices).reshape(-1)
    rows = np.moveaxis(dy.reshape(*x.shape[:axis], flat.size, *x.shape[axis + 1 :]), axis, 0)
    return np.moveaxis(add_rows(rows, flat, count), 0, axis), None


Place = Any
"""What `x[place]` takes."""


def _scatter_vjp(place: Any) -> Vjp:
    """From `place(node, x, indices)`, where the updates go."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        (x, indices, updates), dy, reduction = inputs, grads[0], node.get("reduction", "none")
        where = place(node, x, indices)
        if reduction == "mul":
            raise UnsupportedOp(f"{node} multiplies updates into its data, which pumice cannot differentiate")
        if reduction == "add":
            return dy, None, dy[where]
        if reduction == "none":
            dx = dy.copy()
            dx[where] = 0
            return dx, None, dy[where]
        y = outputs[0]
        return dy * (x == y), None, dy[where] * (updates == y[where])

    return Vjp(run, wrt=(0, 2))


def _place_elements(node: Node, x: Any, indices: Any) -> Place:
    return tuple(np.broadcast_arrays(*_along(indices, node.get("axis", 0) % x.ndim, x.shape)))


def _place_nd(node: Node, x: Any, indices: Any) -> Place:
    return tuple(np.moveaxis(indices, -1, 0))


def _one_hot_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    indices, depth, values = inputs
    flags = namespace(grads[0]).arange(2, dtype=grads[0].dtype)
    (hot,) = _one_hot(node, indices, depth, flags)
    on = (grads[0] * hot).sum()
    return None, None, np.stack([grads[0].sum() - on, on]).astype(values.dtype)


# --- channels ---------------------------------------------------------------------------------------------------------


def _chosen(site: Site) -> Array | None:
    """The positions that a constant vector of indices reads."""
    indices, size = site.constant(1), site.size(0, site.node.get("axis", 0))
    if indices is None or indices.ndim != 1 or size is None:
        return None
    return np.where(indices < 0, indices + size, indices).astype(np.int64)


def _gather_ties(site: Site) -> Iterator[Tie]:
    """Rows of a table are chosen by the data and stay; its other axes are the result's."""
    along = site.node.get("axis", 0) % max(site.rank(0), 1)
    spread = site.rank(1)
    for axis in range(site.rank(0)):
        if axis != along:
            yield Same(into(0, axis), out(0, axis + (spread - 1 if axis > along else 0)))
    for axis in range(spread):
        if spread > 1 or _chosen(site) is None:
            yield Same(into(1, axis), out(0, along + axis))
    chosen = _chosen(site)
    if chosen is None:
        yield Blocked(into(0, along), "Gather chooses rows by number")
    else:
        yield Same(into(0, along), out(0, along), chosen, np.arange(len(chosen)))


def _gather_edit(site: Site, kept: Kept) -> Edit | None:
    """Constant indices are renumbered among what is left."""
    along = site.node.get("axis", 0) % max(site.rank(0), 1)
    mask, chosen = kept(into(0, along)), _chosen(site)
    if mask is None or chosen is None:
        return None
    return Edit(inputs={1: (np.cumsum(mask) - 1)[chosen[mask[chosen]]]})


OPS = (
    Op(
        "Gather",
        forward=_gather,
        vjp=Vjp(_gather_vjp, wrt=(0,), inputs=(1,), outputs=()),
        cost=traffic,
        channels=Channels(_gather_ties, _gather_edit),
    ),
    Op("GatherElements", since=11, forward=_gather_elements, vjp=moved(_gather_elements), cost=traffic),
    Op("GatherND", since=11, forward=_gather_nd, vjp=moved(_gather_nd), cost=traffic),
    Op("Scatter", since=9, forward=_scatter_elements, vjp=_scatter_vjp(_place_elements), cost=traffic),
    Op("ScatterElements", since=11, forward=_scatter_elements, vjp=_scatter_vjp(_place_elements), cost=traffic),
    Op("ScatterND", since=11, forward=_scatter_nd, vjp=_scatter_vjp(_place_nd), cost=traffic),
    Op("TensorScatter", since=24, forward=_tensor_scatter, cost=traffic),
    Op("OneHot", since=9, forward=_one_hot, vjp=Vjp(_one_hot_vjp, wrt=(2,), outputs=()), cost=traffic),
    Op("Compress", since=9, forward=_compress, vjp=moved(_compress), cost=traffic),
)
