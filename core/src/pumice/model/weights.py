"""How many bytes a model's weights take, node by node, whatever file they are stored in.

A weight is an initializer (or a tensor attribute) and counts once, however many nodes read it; sub-byte types count
packed, so eight int4 weights are 4 bytes. The bytes of a node are those of the initializers it reads: where several
nodes share one, each shows it and the total still counts it once.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import onnx_ir as ir

from pumice.model.graph import is_constant, nodes

WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
    "LSTM": (1,),
    "GRU": (1,),
    "RNN": (1,),
    "Gather": (0,),
    "Einsum": (1, 0),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
}
"""Per operator, the inputs that may hold its weight, the likelier first."""


@attrs.frozen
class Sizes:
    """Weight bytes, packed, independent of any file."""

    nodes: Mapping[str, int]
    """Bytes of the initializers that each node of the main graph (and its control-flow bodies) reads, by node name."""
    initializers: Mapping[str, int]
    """Bytes of each initializer and tensor attribute, by name (`node.attribute` for the latter)."""
    total: int
    """Bytes of all weights, each counted once."""


def size(model: ir.Model) -> Sizes:
    """The weight bytes of a model, per node, per initializer and in total. Reads no weight."""
    by_value = {
        value.name or "": value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    by_node: dict[str, int] = {}
    for node in nodes(model):
        attached = {f"{node.name}.{attr.name}": held for attr in node.attributes.values() if (held := _attached(attr))}
        by_value |= attached
        read = {value for value in node.inputs if value is not None and value.is_initializer()}
        by_node[node.name or ""] = sum(by_value[value.name or ""] for value in read) + sum(attached.values())
    return Sizes(by_node, by_value, sum(by_value.values()))


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant that is *the* weight of a node (a convolution's kernel, a product's matrix, a table), or None.

    Biases, normalisation parameters and recurrence matrices are not it: see `weights_of`.
    """
    for index in WEIGHT_INPUTS.get(node.op_type, ()) if node.domain == "" else ():
        if index < len(node.inputs) and is_constant(node.inputs[index]):
            return node.inputs[index]
    return None


def weights_of(node: ir.Node) -> tuple[ir.Value, ...]:
    """Every constant input of a node, in order: weight, bias, recurrence, shapes, axes."""
    return tuple(value for value in node.inputs if value is not None and is_constant(value))


def _attached(attr: ir.Attr) -> int:
    if attr.is_ref():
        return 0
    if attr.type == ir.AttributeType.TENSOR:
        return attr.as_tensor().nbytes
    return sum(t.nbytes for t in attr.as_tensors()) if attr.type == ir.AttributeType.TENSORS else 0
