"""Sequences are Python lists of arrays, optional values are the value or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.ops.record import Array, Node, Op, Outputs

Sequence = list[Any]


def _construct(node: Node, *arrays: Array) -> Outputs:
    return (list(arrays),)


def _empty(node: Node) -> Outputs:
    return ([],)


def _at(node: Node, sequence: Sequence, position: Array) -> Outputs:
    return (sequence[int(position.reshape(()))],)


def _insert(node: Node, sequence: Sequence, value: Array, position: Array | None = None) -> Outputs:
    longer = list(sequence)
    longer.insert(len(sequence) if position is None else int(position.reshape(())), value)
    return (longer,)


def _erase(node: Node, sequence: Sequence, position: Array | None = None) -> Outputs:
    gone = (len(sequence) - 1 if position is None else int(position.reshape(()))) % len(sequence)
    return ([value for i, value in enumerate(sequence) if i != gone],)


def _length(node: Node, sequence: Sequence) -> Outputs:
    return (np.array(len(sequence), dtype=np.int64),)


def _split(node: Node, x: Array, split: Array | None = None) -> Outputs:
    """Parts of the given sizes, equal parts of one size, or single slices."""
    axis = node.get("axis", 0)
    if split is None:
        parts = np.split(x, x.shape[axis], axis=axis)
        return ([p if node.get("keepdims", 1) else p.squeeze(axis) for p in parts],)
    bounds = np.arange(int(split), x.shape[axis], int(split)) if split.ndim == 0 else np.cumsum(split)[:-1]
    return (list(np.split(x, bounds, axis=axis)),)


def _concat(node: Node, sequence: Sequence) -> Outputs:
    axis = node.attributes["axis"]
    return (np.stack(sequence, axis=axis) if node.get("new_axis", 0) else np.concatenate(sequence, axis=axis),)


def _map(node: Node, sequence: Sequence, *others: Any) -> Outputs:
    """The body once per element; other sequences advance along, other tensors stay."""
    body = node.attributes["body"]
    rows = [
        body.run(value, *(other[i] if isinstance(other, list) else other for other in others))
        for i, value in enumerate(sequence)
    ]
    return tuple([row[i] for row in rows] for i in range(len(body.results)))


def _optional(node: Node, value: Any = None) -> Outputs:
    return (value,)


def _has_element(node: Node, value: Any = None) -> Outputs:
    return (np.array(value is not None),)


OPS = (
    Op("SequenceConstruct", since=11, forward=_construct),
    Op("SequenceEmpty", since=11, forward=_empty),
    Op("SequenceAt", since=11, forward=_at),
    Op("SequenceInsert", since=11, forward=_insert),
    Op("SequenceErase", since=11, forward=_erase),
    Op("SequenceLength", since=11, forward=_length),
    Op("SplitToSequence", since=11, forward=_split),
    Op("ConcatFromSequence", since=11, forward=_concat),
    Op("SequenceMap", since=17, forward=_map),
    Op("Optional", since=15, forward=_optional),
    Op("OptionalGetElement", since=15, forward=_optional),
    Op("OptionalHasElement", since=15, forward=_has_element),
)
