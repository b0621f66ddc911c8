"""Folding a factor into the constants of the floating-point operators that compute a value.

    f (c x)       = (f c) x              a product, or a quotient by a constant
    f (x y)       = (f x) y              a product, if f folds into x
    f (x + c)     = f x + f c            if f folds into x
    f LN(x; g, b) = LN(x; f g, f b)      layer normalisation, f along its axis

A multiplication that costs a pass over the activations becomes one of a few constants, done once. The constants of a
GELU are not touched: a runtime that computes it in one operator no longer would, which costs more passes. So nothing is
done at its end, and inside a product only to constants that keep their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, constant, consumers
from pumice.model.affine import closes_a_pattern
from pumice.model.common_factor import is_broadcast


@attrs.frozen(eq=False)
class Constant:
    """What is to be written in the place of a constant input."""

    node: ir.Node
    index: int
    array: NDArray[np.float32]

    @property
    def keeps_shape(self) -> bool:
        held = constant(self.node.inputs[self.index])
        return held is not None and held.shape == self.array.shape


def folded_into_producers(
    value: ir.Value, factor: NDArray[np.float64], may_change: Callable[[ir.Value], bool]
) -> list[Constant] | None:
    """The constants with which `value` becomes `value * factor`; None if that takes more than constants.

    Args:
        value: all of whose readers want the product.
        factor: positive, of a shape that broadcasts to the value's.
        may_change: whether an intermediate value may take other values; it is asked only for those with one reader.
    """
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or value.dtype != ir.DataType.FLOAT:
        return None
    match node.op_type:
        case "Mul" | "Div":
            return _product(node, factor, may_change)
        case "Add" | "Sub":
            return _sum(node, factor, may_change)
        case "LayerNormalization":
            return _normalization(node, factor)
        case _:
            return None


def read_by_none_but(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    """Whether only `readers` see what the numbers of the value are (its shape stays as it is)."""
    others = [reader for reader in consumers(value) if reader not in readers and reader.op_type != "Shape"]
    return not others and not value.is_graph_output()


def _product(
    node: ir.Node, factor: NDArray[np.float64], may_change: Callable[[ir.Value], bool]
) -> list[Constant] | None:
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        known, other = _known(node, index, factor), node.inputs[1 - index]
        if known is not None and other is not None and not closes_a_pattern(other):
            return [_constant(node, index, known * factor if node.op_type == "Mul" else known / factor)]
    for value in node.inputs if node.op_type == "Mul" else node.inputs[:1]:
        inner = _inside(value, factor, may_change)
        if inner is not None and all(known.keeps_shape for known in inner):
            return inner
    return None


def _sum(node: ir.Node, factor: NDArray[np.float64], may_change: Callable[[ir.Value], bool]) -> list[Constant] | None:
    for index in (1, 0):
        known = _known(node, index, factor)
        inner = None if known is None else _inside(node.inputs[1 - index], factor, may_change)
        if known is not None and inner is not None:
            return [*inner, _constant(node, index, known * factor)]
    return None


def _inside(
    value: ir.Value | None, factor: NDArray[np.float64], may_change: Callable[[ir.Value], bool]
) -> list[Constant] | None:
    """The constants with which an intermediate value that one node alone reads, once, becomes larger by the factor."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1 or not may_change(value):
        return None
    return folded_into_producers(value, factor, may_change)


def _normalization(node: ir.Node, factor: NDArray[np.float64]) -> list[Constant] | None:
    """`factor` must lie along the last axis, and only that one be normalised."""
    if attribute(node, "axis", -1) != -1 or any(n != 1 for n in factor.shape[:-1]):
        return None
    given = [index for index in (1, 2) if index < len(node.inputs) and node.inputs[index] is not None]
    known = [_known(node, index, factor) for index in given]
    last = factor.reshape(-1)
    if any(array is None or array.ndim != 1 for array in known):
        return None
    return [_constant(node, i, array * last) for i, array in zip(given, known, strict=True) if array is not None]


def _known(node: ir.Node, index: int, factor: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """A constant input that the factor does not make larger than the larger of both."""
    value = node.inputs[index]
    array = None if value is None or value.is_graph_input() else constant(value)
    if array is None or array.dtype != np.float32:
        return None
    size = int(np.prod(np.broadcast_shapes(array.shape, factor.shape)))
    return array.astype(np.float64) if size <= max(array.size, factor.size) else None


def _constant(node: ir.Node, index: int, array: NDArray[np.float64]) -> Constant:
    return Constant(node, index, array.astype(np.float32))


def gate_of(value: ir.Value, reader: ir.Node) -> int | None:
    """Which input of the reader is a gate of the value: a factor of fewer numbers, one a channel, that can take others.

    A product of a value scaled by channel is that of the value and of a gate scaled by channel. None if there is none.
    """
    if reader.op_type != "Mul" or reader.domain not in ("", "ai.onnx"):
        return None
    index = 1 if reader.inputs[0] is value else 0
    gate = reader.inputs[index]
    if gate is None or gate.shape is None or not is_broadcast(gate, value):
        return None
    return index if all(n == 1 for n in gate.shape[2:]) else None
