"""Operators whose result size depends on the data: the k largest, the non-zero, the distinct, the boxes to keep.

Ties go to the lower index. Non-maximum suppression walks the boxes of a class by falling score and drops every box
whose overlap (intersection over union) with a kept one exceeds the threshold.
"""

from __future__ import annotations

import numpy as np

from pumice.ops.gradient import namespace, zeros
from pumice.ops.record import STOP, Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic


def _top_k(node: Node, x: Array, k: Array | None = None) -> Outputs:
    axis = node.get("axis", -1)
    count = node.attributes["k"] if k is None else int(k.reshape(-1)[0])
    if node.get("largest", 1):  # a stable descending order is an ascending one of the flipped data, flipped
        order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    chosen = np.take(order, namespace(x).arange(count), axis=axis)
    return np.take_along_axis(x, chosen, axis=axis), chosen.astype(np.int64)


def _non_zero(node: Node, x: Array) -> Outputs:
    return (np.stack(np.nonzero(x)).astype(np.int64),)


def _unique(node: Node, x: Array) -> Outputs:
    axis = node.get("axis")
    y, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not node.get("sorted", 1):
        order = np.argsort(first)
        rank = np.argsort(order)
        y, first, inverse, counts = np.take(y, order, axis=axis or 0), first[order], rank[inverse], counts[order]
    return y, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _corners(boxes: Array, centred: bool) -> Array:
    """(..., 4) boxes as (low1, low2, high1, high2), whichever corners or centres were given."""
    if centred:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.concatenate([middle - half, middle + half], axis=-1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box with many."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return np.where((shared > 0) & (union > 0), shared / np.where(union > 0, union, 1), 0)


def _suppress(boxes: Array, scores: Array, limit: int, threshold: float, floor: float | None) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    if floor is not None:
        order = order[scores[order] > floor]
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[_overlap(boxes[best], boxes[rest]) <= threshold]
    return kept


def _non_max_suppression(
    node: Node,
    boxes: Array,
    scores: Array,
    limit: Array | None = None,
    iou: Array | None = None,
    floor: Array | None = None,
) -> Outputs:
    """Rows of (batch, class, box); no limit means that nothing is selected."""
    most = 0 if limit is None else max(0, int(limit.reshape(-1)[0]))
    threshold = 0.0 if iou is None else float(iou.reshape(-1)[0])
    lowest = None if floor is None else float(floor.reshape(-1)[0])
    corners = _corners(boxes, bool(node.get("center_point_box", 0)))
    rows = [
        (batch, label, box)
        for batch in range(scores.shape[0])
        for label in range(scores.shape[1])
        for box in _suppress(corners[batch], scores[batch, label], most, threshold, lowest)
    ]
    return (np.array(rows, dtype=np.int64).reshape(-1, 3),)


def _top_k_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    dx = zeros(inputs[0])
    np.put_along_axis(dx, outputs[1], grads[0], axis=node.get("axis", -1))
    return [dx, *[None] * (len(inputs) - 1)]


OPS = (
    Op("TopK", forward=_top_k, vjp=Vjp(_top_k_vjp, wrt=(0,), inputs=(), outputs=(1,)), cost=traffic),
    Op("NonZero", since=9, forward=_non_zero, vjp=STOP, cost=traffic),
    Op("Unique", since=11, forward=_unique, cost=traffic),
    Op("NonMaxSuppression", since=10, forward=_non_max_suppression, vjp=STOP, cost=traffic),
)
