"""Operators that move elements. Most of them only look at memory in another way; Concat and Gather copy rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Array
from pumice.program import ABSENT, Step
from pumice_cpu.runtime.compiler import Compiler
from pumice_cpu.runtime.views import View, channels_last, constant, within

NUMBERS = {"bool": 0, "uint8": 1, "int8": 2, "int32": 3, "int64": 4, "float32": 5}
SIZES = frozenset({1, 2, 4, 8})


def look(c: Compiler, step: Step) -> bool:
    """The results are views of the first operand, after a copy into C order where they cannot be of it as it lies."""
    if c.trace.is_known(step.inputs[0]):
        return False
    given = c.view(step.inputs[0])
    others = [c.known(slot) for slot in step.inputs[1:]]
    if any(o is None and slot != ABSENT for o, slot in zip(others, step.inputs[1:], strict=True)):
        return False
    found = _looked(step, given, others)
    if found is None and (given.is_plain or given.dtype.itemsize not in SIZES):
        return False
    if found is None:
        given = c.plain(step.inputs[0])
        found = _looked(step, given, others)
    if found is None:
        return False
    for slot, array in zip(step.outputs, found, strict=False):
        if slot != ABSENT:
            c.alias(slot, given.root, array)
    return True


def _looked(step: Step, given: View, others: list[Any]) -> list[Array] | None:
    """What NumPy makes of the description, if it is nothing but another look at the same memory."""
    assert step.op.forward is not None
    found = list(step.op.forward(step.node, given.array, *others))
    usable = all(within(given.root, a) and all(s >= 0 for s in a.strides) for a in found)
    return found if usable else None


def gather(c: Compiler, step: Step) -> bool:
    """Slices by index. One constant index is a look at memory."""
    x, index = step.inputs
    axis = step.node.get("axis", 0) % max(len(c.shape(x)), 1)
    where = c.known(index)
    if where is not None and where.size == 1 and not c.trace.is_known(x):
        view, at = c.view(x), int(where.reshape(()))
        picked = view.array[(slice(None),) * axis + (at,)]
        for _ in where.shape:
            picked = np.expand_dims(picked, axis)
        c.alias(step.outputs[0], view.root, picked)
        return True
    if c.dtype(index).name not in {"int32", "int64"} or c.dtype(x).hasobject:
        return False
    source, indices = c.plain(x), c.plain(index)
    c.emit(
        "gather", c.result(step.outputs[0]), source, indices,
        outer=math.prod(source.shape[:axis]), size=source.shape[axis], count=indices.array.size,
        bytes=math.prod(source.shape[axis + 1 :]) * source.dtype.itemsize, wide=int(indices.dtype == np.int64),
    )  # fmt: skip
    return True


def pad(c: Compiler, step: Step) -> bool:
    """Elements that repeat others, along one axis, by index; the operator itself says which."""
    x, *rest = step.inputs
    known = [None if slot == ABSENT else c.known(slot) for slot in rest]
    before = c.shape(x)
    if step.node.get("mode", "constant") == "constant" or 0 in c.shape(step.outputs[0]) or c.dtype(x).hasobject:
        return False
    if any(value is None for value, slot in zip(known, rest, strict=True) if slot != ABSENT):
        return False
    places = [_padded(step, known, before, axis) for axis in range(len(before))]
    changed = [i for i, size in enumerate(before) if not np.array_equal(places[i], np.arange(size))]
    if len(changed) != 1:
        return False
    (axis,) = changed
    source = c.plain(x)
    c.emit(
        "gather", c.result(step.outputs[0]), source, constant(places[axis]), outer=math.prod(before[:axis]),
        size=before[axis], count=len(places[axis]), bytes=math.prod(before[axis + 1 :]) * source.dtype.itemsize, wide=1,
    )  # fmt: skip
    return True


def _padded(step: Step, amounts: Sequence[Any], shape: Sequence[int], axis: int) -> Any:
    """The indices, int64, that an axis of the result of a Pad has of the operand's."""
    assert step.op.forward is not None
    along = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    (index,) = step.op.forward(step.node, np.broadcast_to(along, shape), *amounts)
    return np.ascontiguousarray(index.swapaxes(axis, 0).reshape(index.shape[axis], -1)[:, 0], np.int64)


def concat(c: Compiler, step: Step) -> bool:
    """Copies of rows, in whatever order the operands lie in."""
    operands = [slot for slot in step.inputs if slot != ABSENT]
    axis = step.node.get("axis", 0) % len(c.shape(step.outputs[0]))
    if c.dtype(operands[0]).hasobject:
        return False
    order = common_order(c, operands)
    join(c, step.outputs[0], [c.ordered(slot, order) for slot in operands], axis, order)
    return True


def common_order(c: Compiler, slots: Sequence[int]) -> tuple[int, ...]:
    """Channels last if one of the values lies so and in no other way, else C order."""
    rank = len(c.shape(slots[0]))
    found = [c.view(slot) for slot in slots]
    last = any(v.is_channels_last and not v.is_plain for v in found)
    return channels_last(rank) if last else tuple(range(rank))


def join(c: Compiler, slot: int, parts: Sequence[View], axis: int, order: tuple[int, ...]) -> None:
    """Operands that lie in one order, side by side along an axis: written there in the first place, or copied."""
    target = c.result(slot, order)
    at = order.index(axis)
    widths = [math.prod(p.shape[a] for a in order[at:]) * p.dtype.itemsize for p in parts]
    rows, begin, first = math.prod(target.shape[a] for a in order[:at]), 0, 0
    for part, width in zip(parts, widths, strict=True):
        last = first + part.shape[axis]
        place = View(target.root, target.array[(slice(None),) * axis + (slice(first, last),)])
        if sum(p is part for p in parts) > 1 or not c.redirect(part, place):
            c.emit("copy", target, part, rows=rows, bytes=width, from_stride=width, to=begin, to_stride=sum(widths))
        begin, first = begin + width, last


def cast(c: Compiler, step: Step) -> bool:
    """Between whole numbers and float32."""
    x, y = step.inputs[0], step.outputs[0]
    source, target = c.dtype(x).name, c.dtype(y).name
    if source == target:
        view = c.view(x)
        c.alias(y, view.root, view.array)
        return True
    if source not in NUMBERS or target not in {"int32", "int64", "float32"} or (source == "float32"):
        return False
    given = c.gapless(x)
    c.emit(
        "cast", c.result_like(y, given), given, count=given.array.size, source=NUMBERS[source], target=NUMBERS[target]
    )
    return True


VIEWS = "Transpose Reshape Flatten Squeeze Unsqueeze Identity Slice Split Expand".split()
LOWERS = {("", name): look for name in VIEWS} | {
    ("", "Gather"): gather,
    ("", "Pad"): pad,
    ("", "Concat"): concat,
    ("", "Cast"): cast,
}
