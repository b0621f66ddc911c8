"""Pairing: which node of the compressed model computes what which node of the original computed, and with what weights.

Nodes are paired by name, which every step keeps. What a quantizer put around a node has names that the original lacks;
walking back from a node over such new nodes finds its integer weights, in whichever form they are used:

    DequantizeLinear(integers) -> layer                                 and any expression of constants alone
    MatMulInteger(x, integers) -> Cast -> Mul(x scale * weight scale)   dynamic
    Gather(bytes, index) -> ... -> Mul(Gather(scales, index))           embedding, whatever makes numbers of bytes

and walking forward over QuantizeLinear and DequantizeLinear finds what the rest of the model sees of its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, constant, consumers, is_constant, nodes, weight_of
from pumice.registry import registry

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})


@attrs.frozen(eq=False)
class CompressedWeights:
    """The weights of one layer in the compressed model."""

    values: NDArray[Any]
    """As real numbers, in the shape of the original weights."""
    nbytes: int
    """What they take, with their scales and zero points, sub-byte types packed."""


@attrs.frozen(eq=False)
class Pair:
    """One layer in both models."""

    before: ir.Node
    after: ir.Node
    weights_before: ir.Value
    weights_after: CompressedWeights
    output_before: ir.Value
    output_after: ir.Value
    """Compares with `output_before`: what the rest of the model reads."""
    covered: tuple[float, float] | None
    """The range of real numbers that the output's integers can express; None if the output is not quantized."""


def pairs(original: ir.Model, compressed: ir.Model) -> Iterator[Pair]:
    """Every layer whose weights the compressed model stores differently, in the original's order."""
    before: dict[str | None, ir.Node] = {node.name: node for node in nodes(original) if node.name}
    for after in nodes(compressed):
        node = before.get(after.name)
        value = None if node is None else weight_of(node)
        if node is None or value is None:
            continue
        weights = _weights_after(after, node, before, compressed)
        if weights is None or weights.values.shape != tuple(value.shape.numpy() if value.shape else ()):
            continue
        output_before, output_after, covered = _outputs(node, after, {n.name for n in nodes(compressed)})
        yield Pair(node, after, value, weights, output_before, output_after, covered)


def _weights_after(
    after: ir.Node, before: ir.Node, known: dict[str | None, ir.Node], model: ir.Model
) -> CompressedWeights | None:
    """None if the weights are as they were, or in a form that is not recognised."""
    direct = weight_of(after) if after.op_type == before.op_type else None
    if direct is not None:
        return _edited_in_place(direct, weight_of(before))
    around = list(_new_nodes_behind(after, known))
    finders = (_behind_expression, _behind_integer_product, _behind_lookup)
    found = [w for finder in finders if (w := finder(after, around, before, model)) is not None]
    return max(found, key=lambda weights: weights.values.size, default=None)


def _edited_in_place(now: ir.Value, then: ir.Value | None) -> CompressedWeights | None:
    """Weights that are still floating point but have other values: pruned, clustered."""
    new, old = constant(now), constant(then)
    if new is None or old is None or new.shape != old.shape or new is old or np.array_equal(new, old):
        return None
    return CompressedWeights(new, new.nbytes)


def _new_nodes_behind(node: ir.Node, known: dict[str | None, ir.Node]) -> Iterator[ir.Node]:
    """Nodes before `node` that the original has not, up to the first that it has."""
    waiting, seen = list(node.predecessors()), {node}
    while waiting:
        candidate = waiting.pop()
        if candidate in seen or candidate.name in known:
            continue
        seen.add(candidate)
        yield candidate
        waiting += candidate.predecessors()


def _behind_expression(
    after: ir.Node, around: list[ir.Node], before: ir.Node, model: ir.Model
) -> CompressedWeights | None:
    """Weights that new nodes compute from constants alone, whichever operators they are."""
    position = next(
        (i for i, value in enumerate(before.inputs) if value is not None and value is weight_of(before)), None
    )
    if position is None or after.op_type != before.op_type or position >= len(after.inputs):
        return None
    leaves: list[ir.Value] = []
    values = _evaluate(after.inputs[position], set(around), model, leaves)
    return None if values is None else CompressedWeights(values, _stored(leaves))


def _behind_integer_product(
    after: ir.Node, around: list[ir.Node], before: ir.Node, model: ir.Model
) -> CompressedWeights | None:
    product = next(
        (n for n in around if n.op_type in ("MatMulInteger", "ConvInteger") and is_constant(n.inputs[1])), None
    )
    if product is None:
        return None
    scale = next((v for n in (*around, after) if n.op_type == "Mul" for v in n.inputs if _is_float_constant(v)), None)
    integers, factor = constant(product.inputs[1]), constant(scale)
    zero = constant(product.inputs[3]) if len(product.inputs) > 3 else None
    if integers is None or factor is None:
        return None
    real = (integers.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))) * factor
    transposed = before.op_type == "Gemm" and attribute(before, "transB", 0)
    return CompressedWeights(real.T if transposed else real, _stored([product.inputs[1], scale]))


def _behind_lookup(after: ir.Node, around: list[ir.Node], before: ir.Node, model: ir.Model) -> CompressedWeights | None:
    """A table whose rows are widened as they are looked up: what new nodes make of all of them."""
    table = weight_of(before)
    if before.op_type != "Gather" or attribute(before, "axis", 0) != 0 or table is None or table.shape is None:
        return None
    index, leaves = before.inputs[1], list[ir.Value]()
    assert index is not None
    every = {str(index.name): np.arange(table.shape.numpy()[0])}
    values = _evaluate(after.outputs[0], {*around, after}, model, leaves, every)
    return None if values is None else CompressedWeights(values, _stored(leaves))


def _outputs(
    before: ir.Node, after: ir.Node, remaining: set[str | None]
) -> tuple[ir.Value, ir.Value, tuple[float, float] | None]:
    """The comparable values behind both nodes, and the range of the quantized one."""
    first = next((i for i, value in enumerate(before.outputs) if value.name), 0)  # recurrent nodes leave outputs out
    exact, seen = before.outputs[first], after.outputs[min(first, len(after.outputs) - 1)]
    quantize = next((n for n in consumers(seen) if n.op_type == "QuantizeLinear"), None)
    dequantize = (
        next((n for n in consumers(quantize.outputs[0]) if n.op_type == "DequantizeLinear"), None) if quantize else None
    )
    if quantize is None or dequantize is None:
        return exact, seen, None
    readers = consumers(exact)
    if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS and readers[0].name not in remaining:
        exact = readers[0].outputs[0]  # the activation vanished into the range of the integers
    return exact, dequantize.outputs[0], _representable(quantize)


def _representable(quantize: ir.Node) -> tuple[float, float] | None:
    scale, zero = constant(quantize.inputs[1]), constant(quantize.inputs[2] if len(quantize.inputs) > 2 else None)
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits, offset, step = np.iinfo(zero.dtype), int(zero.reshape(())), float(scale.reshape(()))
    return (limits.min - offset - 0.5) * step, (limits.max - offset + 0.5) * step  # half a step rounds into the range


def _evaluate(
    value: ir.Value | None,
    allowed: set[ir.Node],
    model: ir.Model,
    leaves: list[ir.Value],
    given: Mapping[str, NDArray[Any]] | None = None,
) -> NDArray[Any] | None:
    """An expression of constants, and of what is given by name, by the operators' own definitions; None if it is none.

    Collects the constants it reads.
    """
    from pumice.ops import Node

    node = None if value is None else value.producer()
    if value is not None and value.name and given and value.name in given:
        return given[value.name]
    if value is None or is_constant(value):
        leaves += [] if value is None or value in leaves else [value]
        return constant(value)
    if node is None or node not in allowed:
        return None
    opset = model.opset_imports.get(node.domain, 1)
    op = registry().ops.resolve(node.domain, node.op_type, opset)
    arrays = [_evaluate(read, allowed, model, leaves, given) for read in node.inputs]
    lacking = any(a is None and read is not None for a, read in zip(arrays, node.inputs, strict=True))
    if op is None or op.forward is None or lacking:
        return None
    view = Node(
        op_type=node.op_type,
        domain=node.domain,
        name=node.name or "",
        attributes={name: attribute(node, name) for name in node.attributes},
        opset=opset,
        outputs=tuple(output.name or "" for output in node.outputs),
    )
    return np.asarray(op.forward(view, *arrays)[node.outputs.index(value)])


def _is_float_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT


def _stored(values: Any) -> int:
    return sum(v.const_value.nbytes for v in values if v is not None and v.const_value is not None)
