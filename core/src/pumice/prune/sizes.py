"""Sizes that the graph computes for itself: Shape, Gather, Div and Concat in front of a Reshape.

ONNX's shape inference loses a size that passes through arithmetic on a vector with an unknown element. Here every
integer vector is followed element by element: a number, the name of a dynamic size, or unknown. What the targets of
Reshape and Expand say is then written to their results, and inference goes on from there until nothing is gained. A
vector that is known throughout becomes a constant: the bounds of a Slice are then as good as written down.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pumice.model import add_initializer, attribute, clone, constant, infer_shapes, remove_unread

Element = int | str | None
"""A number, a dynamic size by name, or unknown."""
Elements = list[Element]

_ROUNDS = 4
_LONGEST = 64
"""Vectors of sizes are short; longer integer constants are data."""


def with_sizes(model: ir.Model) -> ir.Model:
    """A copy whose values have every size that follows from its own shape arithmetic."""
    model = infer_shapes(clone(model))
    for _ in range(_ROUNDS):
        if not _refine(model):
            break
        remove_unread(model)
        model = infer_shapes(model)
    return model


def _refine(model: ir.Model) -> bool:
    """Whether a size became known that was not."""
    known: dict[ir.Value, Elements] = {}
    gained = False
    for node in list(model.graph):
        found = _evaluate(node, known)
        if found is not None:
            known[node.outputs[0]] = found
            gained |= _fold(model, node.outputs[0], found)
        gained |= _copy(node)
        if node.op_type in {"Reshape", "Expand"} and len(node.inputs) > 1 and node.inputs[1] is not None:
            target = _elements(node.inputs[1], known)
            if target is not None and node.inputs[0] is not None:
                gained |= _write(node, _dims(node.inputs[0]), target)
    return gained


SHAPE_KEEPING = frozenset({"GroupNormalization", "RMSNormalization", "Gelu", "QuickGelu", "SkipLayerNormalization"})
"""Operators whose first result has the shape of the first input, which ONNX's inference does not know everywhere."""


def _copy(node: ir.Node) -> bool:
    """Sizes that pass a node unchanged: all of them, or those of the axes that a Slice does not cut."""
    source = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if source is None or not node.outputs:
        return False
    result = node.outputs[0]
    if node.op_type in SHAPE_KEEPING and result.shape is None:
        result.shape = ir.Shape(list(source))
        result.type = result.type or node.inputs[0].type  # type: ignore[union-attr]
        return True
    axes = constant(node.inputs[3]) if node.op_type == "Slice" and len(node.inputs) > 3 else None
    if axes is None or (result.shape is not None and all(isinstance(d, int) for d in result.shape)):
        return False
    cut = {int(axis) % len(source) for axis in axes.reshape(-1)}
    old = list(result.shape) if result.shape is not None else [None] * len(source)
    new = [n if i not in cut and isinstance(n, int) else o for i, (n, o) in enumerate(zip(source, old, strict=True))]
    if new == old:
        return False
    result.shape = ir.Shape(new)
    return True


def _fold(model: ir.Model, value: ir.Value, elements: Elements) -> bool:
    """Let the readers of a vector that is known throughout read a constant."""
    numbers = [n for n in elements if isinstance(n, int)]
    if len(numbers) < len(elements) or value.shape is None or value.dtype is None or value.is_graph_output():
        return False
    if not value.uses() or len(value.shape) > 1:
        return False
    array = np.array(numbers, value.dtype.numpy())
    value.replace_all_uses_with(add_initializer(model, f"{value.name}.known", array.reshape((-1,) * len(value.shape))))
    return True


def _dims(value: ir.Value) -> Elements | None:
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value or f"{value.name}[{i}]" for i, d in enumerate(value.shape)]


def _elements(value: ir.Value | None, known: dict[ir.Value, Elements]) -> Elements | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or not value.is_initializer():
        return None
    array = constant(value)
    return None if array is None or array.size > _LONGEST or array.ndim > 1 else [int(v) for v in array.reshape(-1)]


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv,
}  # fmt: skip


def _evaluate(node: ir.Node, known: dict[ir.Value, Elements]) -> Elements | None:
    """The elements of a node's result, where they are sizes."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Shape" and first is not None:
        sizes = _dims(first)
        return None if sizes is None else sizes[attribute(node, "start", 0) : attribute(node, "end")]
    read = [_elements(value, known) for value in node.inputs]
    if not read or any(elements is None for elements in read):
        return None
    given: list[Any] = read
    match node.op_type:
        case "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape":
            return list(given[0])
        case "Concat":
            return [element for elements in given for element in elements]
        case "Gather" if all(isinstance(i, int) and -len(given[0]) <= i < len(given[0]) for i in given[1]):
            return [given[0][i] for i in given[1]]
        case "Slice" if all(isinstance(i, int) for elements in given[1:] for i in elements):
            return _sliced(given)
        case "Add" | "Sub" | "Mul" | "Div":
            return _combined(node.op_type, given[0], given[1])
    return None


def _sliced(given: list[Any]) -> Elements | None:
    elements, (start, *_), (end, *_) = given[:3]
    step = given[4][0] if len(given) > 4 else 1
    return list(elements[start : min(end, len(elements)) : step]) if step > 0 else None


def _combined(name: str, a: Elements, b: Elements) -> Elements | None:
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        return None
    count = max(len(a), len(b))
    pairs = zip(a * (count // len(a)), b * (count // len(b)), strict=True)
    plain = [(x, y) for x, y in pairs]
    return [_one(name, x, y) for x, y in plain]


def _one(name: str, x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return None if name == "Div" and y == 0 else _ARITHMETIC[name](x, y)
    return x if y == {"Add": 0, "Sub": 0}.get(name, 1) else None


def _write(node: ir.Node, source: Elements | None, target: Elements) -> bool:
    """Give the result the sizes of its target; whether that told anything new."""
    if node.op_type == "Reshape":
        sizes = _reshaped(source, target, bool(attribute(node, "allowzero", 0)))
    else:
        sizes = [element if isinstance(element, int) and element > 1 else None for element in target]
        if source is None or len(source) > len(target):
            return False
    value = node.outputs[0]
    if sizes is None or (value.shape is not None and len(value.shape) != len(sizes)):
        return False
    old = [None] * len(sizes) if value.shape is None else list(value.shape)
    new = [s if isinstance(s, int) and not isinstance(o, int) else o for s, o in zip(sizes, old, strict=True)]
    if [isinstance(n, int) for n in new] == [isinstance(o, int) for o in old]:
        return False
    value.shape = ir.Shape(new)
    return True


def _reshaped(source: Elements | None, target: Elements, allow_zero: bool) -> Elements | None:
    """The sizes of a Reshape: zeros copied, and -1 from what is left when equal dynamic sizes cancel."""
    if source is None:
        return None
    sizes: Elements = []
    for axis, element in enumerate(target):
        copied = element == 0 and not allow_zero
        sizes.append(source[axis] if copied and axis < len(source) else element)
    if sizes.count(-1) == 1 and None not in sizes and None not in source:
        left = [n for n in source if not isinstance(n, int)]
        for name in (n for n in sizes if not isinstance(n, int)):
            if name not in left:
                return [None if n == -1 else n for n in sizes]
            left.remove(name)
        whole, part = _product(source), _product([n for n in sizes if n != -1])
        sizes[sizes.index(-1)] = whole // part if not left and part else None
    return [None if n == -1 else n for n in sizes]


def _product(elements: Sequence[Element]) -> int:
    return math.prod(n for n in elements if isinstance(n, int))
