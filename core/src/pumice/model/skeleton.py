"""The model without its weights: what ONNX's C++ passes are given, however large the model.

ONNX's converter, shape inference, inliner and checker take serialised models, which protobuf limits to 2 GB and which
cost several copies of the weights. None of them looks at a weight, only at its type and shape, and at the *values* of
small tensors (shapes, axes, scales). So each tensor above `KEEP` bytes travels as an external-data entry whose
location is its number in a list, and is put back from that list afterwards. The weights are never copied.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from pumice.model.graph import forget_names
from pumice.model.tensors import detached, replace_tensors

KEEP = 8192
"""Bytes up to which a tensor stays in the skeleton, so that ONNX can propagate shapes and axes through it."""

_MARK = "pumice-weight-"


def through(model: ir.Model, function: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """`function` applied to the model's skeleton, with the weights put back: a new model that shares them."""
    proto, held = strip(model)
    result = ir.from_proto(function(proto))
    _fill(result, held)
    result.meta.update(model.meta)
    forget_names(result)
    return result


def strip(model: ir.Model) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """The skeleton and the tensors taken out of it, in the order of their numbers. The model is left as it was."""
    held: list[ir.TensorProtocol] = []

    def take(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.nbytes <= KEEP:
            return tensor
        held.append(tensor)
        return ir.ExternalTensor(
            f"{_MARK}{len(held) - 1}", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )

    bare = model.clone()
    replace_tensors(bare.graph, take)
    return ir.to_proto(bare), held


def as_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The skeleton with its absent weights declared as inputs of the main graph: a form the checker accepts.

    Names must be unique across bodies, since all see the main graph.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    absent: dict[str, onnx.TensorProto] = {}
    for graph in _graphs(bare.graph):
        for index in reversed(range(len(graph.initializer))):
            if _is_absent(graph.initializer[index]):
                absent[graph.initializer[index].name] = graph.initializer[index]
                del graph.initializer[index]
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            if node.op_type == "Constant" and any(_is_absent(attribute.t) for attribute in node.attribute):
                absent[node.output[0]] = node.attribute[0].t
                del graph.node[index]
    declared = {value.name for value in bare.graph.input}
    for name in sorted(absent.keys() - declared):
        tensor = absent[name]
        bare.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return bare


def _is_absent(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                found += _graphs(attr.g)
            for inner in attr.graphs:
                found += _graphs(inner)
    return found


def _fill(model: ir.Model, held: list[ir.TensorProtocol]) -> None:
    def put_back(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(_MARK):
            return held[int(str(tensor.location).removeprefix(_MARK))]
        return detached(name, tensor)

    replace_tensors(model.graph, put_back)
