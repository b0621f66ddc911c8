"""Products as a GPU wants them: few, and each whole.

Dynamic quantization writes a product as MatMulInteger, Cast, Mul by the product of the scales, and often an Add of a
bias: that is one MatMulIntegerToFloat, which computes the same numbers. Several of them that read one matrix, as the
queries, keys and values of attention do, are one product with the columns of all, and a Split; so are products of
floats whose columns are divided into heads next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, constant, consumers, is_constant, replace_value

MICROSOFT = "com.microsoft"
PRODUCT = "MatMulIntegerToFloat"
AXIS_OF_COLUMNS = -1


def merge_products(model: ir.Model) -> None:
    """Change the model in place."""
    for node in list(model.graph):
        if node.op_type == "MatMulInteger" and not node.domain:
            _spell_in_one(model, node)
    for siblings in _siblings(model):
        _join(model, siblings)
    for projections in _projections(model):
        _join_projections(model, projections)


# --- one product in one node ------------------------------------------------------------------------------------------


def _spell_in_one(model: ir.Model, product: ir.Node) -> None:
    """A MatMulIntegerToFloat for MatMulInteger, Cast, Mul [, Add], if that is what follows."""
    cast = _only_reader(product.outputs[0])
    scaling = None if cast is None or cast.op_type != "Cast" else _only_reader(cast.outputs[0])
    if cast is None or scaling is None or scaling.op_type != "Mul" or attribute(cast, "to", 0) != ir.DataType.FLOAT:
        return
    scales = _scales(_beside(scaling, cast.outputs[0]))
    b = constant(product.inputs[1])
    if scales is None or b is None or b.ndim != 2:
        return
    addition = _only_reader(scaling.outputs[0])
    bias = None if addition is None or addition.op_type != "Add" else _beside(addition, scaling.outputs[0])
    held = constant(bias)
    last = addition if addition is not None and held is not None and held.shape == b.shape[1:] else scaling
    a, weights, za, zb = (*product.inputs, None, None)[:4]
    inputs = [a, weights, *scales, za, zb, *([bias] if last is addition else [])]
    node = ir.Node(MICROSOFT, PRODUCT, inputs, num_outputs=1, name=last.name)
    _replace(model, node, [last], after=last)
    for gone in [*([scaling] if last is addition else []), cast, product]:
        model.graph.remove(gone, safe=True)


def _scales(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The scale of the first matrix and that of the columns of the second, whose product a value is."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Mul" or maker.domain:
        return None
    for own, columns in (maker.inputs, maker.inputs[::-1]):
        maker_of_own = None if own is None else own.producer()
        found = constant(columns)
        if maker_of_own is not None and maker_of_own.op_type == "DynamicQuantizeLinear" and found is not None:
            return (own, columns) if own is not None and columns is not None and found.ndim <= 1 else None
    return None


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = consumers(value)
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _beside(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


# --- products of one matrix -------------------------------------------------------------------------------------------


def _siblings(model: ir.Model) -> Iterator[list[ir.Node]]:
    """Products with the same first matrix, all with a bias or all without."""
    groups: dict[tuple[ir.Value | None, ...], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == PRODUCT and node.domain == MICROSOFT and _is_joinable(node):
            a, _, sa, _, za, _, bias = (*node.inputs, None, None, None)[:7]
            groups[a, sa, za, None if bias is None else a].append(node)
    yield from (group for group in groups.values() if len(group) > 1)


def _is_joinable(node: ir.Node) -> bool:
    """Whether all of its columns are known, symmetric and of one type."""
    _, b, _, sb, _, zb, bias = (*node.inputs, None, None, None)[:7]
    held, zeros = constant(b), constant(zb)
    known = held is not None and held.ndim == 2 and held.dtype == np.int8 and is_constant(sb)
    symmetric = zb is None or (zeros is not None and not zeros.any())
    return known and symmetric and (bias is None or is_constant(bias))


def _join(model: ir.Model, siblings: list[ir.Node]) -> None:
    first = siblings[0]
    a, _, sa, _, za, _, bias = (*first.inputs, None, None, None)[:7]
    widths = [_held(node, 1).shape[1] for node in siblings]
    scales = [np.broadcast_to(_held(node, 3), width) for node, width in zip(siblings, widths, strict=True)]
    joined = {"b": np.concatenate([_held(node, 1) for node in siblings], axis=1), "scale": np.concatenate(scales)}
    if bias is not None:
        joined["bias"] = np.concatenate([_held(node, 6) for node in siblings])
    name = first.outputs[0].name
    values = {key: add_initializer(model, f"{name}/joined_{key}", array) for key, array in joined.items()}
    sizes = add_initializer(model, f"{name}/joined_widths", np.array(widths, np.int64))
    inputs = [a, values["b"], sa, values["scale"], za, None, *([values["bias"]] if bias is not None else [])]
    product = ir.Node(MICROSOFT, PRODUCT, inputs, num_outputs=1, name=f"{name}/joined")
    product.outputs[0].name = f"{name}/joined"
    split = ir.Node(
        "", "Split", [product.outputs[0], sizes], [ir.AttrInt64("axis", AXIS_OF_COLUMNS)], num_outputs=len(siblings)
    )
    model.graph.insert_before(first, product)
    _replace(model, split, siblings, after=product)


def _held(node: ir.Node, index: int) -> np.ndarray:
    found = constant(node.inputs[index])
    assert found is not None
    return found


# --- products of floats -----------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Projection:
    """MatMul by a constant matrix [, Add of a constant vector], and Reshape."""

    product: ir.Node
    last: ir.Node
    matrix: NDArray[np.floating]
    terms: NDArray[np.floating] | None

    @classmethod
    def of(cls, product: ir.Node) -> Projection | None:
        matrix = constant(product.inputs[1]) if product.op_type == "MatMul" and not product.domain else None
        if matrix is None or matrix.ndim != 2 or matrix.dtype.kind != "f":
            return None
        reader = _only_reader(product.outputs[0])
        addition = reader if reader is not None and reader.op_type == "Add" else None
        terms = None if addition is None else constant(_beside(addition, product.outputs[0]))
        if addition is not None and (terms is None or terms.shape != matrix.shape[1:] or terms.dtype != matrix.dtype):
            return None
        last = addition or product
        following = _only_reader(last.outputs[0])
        return cls(product, last, matrix, terms) if following is not None and following.op_type == "Reshape" else None


def _projections(model: ir.Model) -> Iterator[list[Projection]]:
    """Those of the same matrix and type, all with terms or all without."""
    groups: dict[tuple[ir.Value | None, np.dtype, bool], list[Projection]] = defaultdict(list)
    for node in model.graph:
        found = Projection.of(node)
        if found is not None:
            groups[node.inputs[0], found.matrix.dtype, found.terms is None].append(found)
    yield from (group for group in groups.values() if len(group) > 1)


def _join_projections(model: ir.Model, group: list[Projection]) -> None:
    first, name = group[0].product, group[0].product.outputs[0].name
    matrix = add_initializer(model, f"{name}/joined_b", np.concatenate([p.matrix for p in group], axis=1))
    sizes = np.array([p.matrix.shape[1] for p in group], np.int64)
    widths = add_initializer(model, f"{name}/joined_widths", sizes)
    joined = [ir.Node("", "MatMul", [first.inputs[0], matrix], num_outputs=1, name=f"{name}/joined")]
    parts = [p.terms for p in group if p.terms is not None]
    if parts:
        terms = add_initializer(model, f"{name}/joined_bias", np.concatenate(parts))
        joined.append(ir.Node("", "Add", [joined[0].outputs[0], terms], num_outputs=1, name=f"{name}/joined_terms"))
    for node in joined:
        node.outputs[0].name = node.name
        model.graph.insert_before(first, node)
    split = ir.Node(
        "", "Split", [joined[-1].outputs[0], widths], [ir.AttrInt64("axis", AXIS_OF_COLUMNS)], num_outputs=len(group)
    )
    _replace(model, split, [p.last for p in group], after=joined[-1])
    for gone in (p.product for p in group if p.last is not p.product):
        model.graph.remove(gone, safe=True)


def _replace(model: ir.Model, node: ir.Node, gone: list[ir.Node], after: ir.Node) -> None:
    """The node's outputs take the place of the first outputs of others."""
    model.graph.insert_after(after, node)
    for new, old in zip(node.outputs, gone, strict=True):
        replace_value(old.outputs[0], new)
    for old in gone:
        model.graph.remove(old, safe=True)
