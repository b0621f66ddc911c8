"""Questions and edits on a graph that every other part of pumice needs, thin over `onnx_ir`.

A *constant* is a value known before the model runs: an initializer, the output of a `Constant` node, or a value that
constant folding has annotated. Names are unique across the main graph and all control-flow bodies, because an ONNX
body sees the names around it. `clone` shares the weight arrays and nothing else, so a step may edit its copy freely;
`fingerprint` is a hash of what the model *computes with* (structure, attributes, weights), not of the file it came
from: where the weights are stored, doc strings and inferred shapes do not enter it.
"""

from __future__ import annotations

import copy
import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_NAMES = "pumice.names"


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and, after its owner, of each control-flow body."""
    return ir.traversal.RecursiveGraphIterator(model.graph)


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array a value is known to hold, or None if it is known only at run time (or `value` is None).

    Sub-byte types come as `ml_dtypes` arrays, one element an item. The array may be memory-mapped: do not write to it.
    """
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant` would return an array, without reading it."""
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def consumers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read `value`, each once, those inside control-flow bodies included.

    A graph output is read by the caller as well: ask `value.is_graph_output()`.
    """
    return tuple(value.consumers())


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain Python value of an attribute: int, float, str, tuple of these, NumPy array, or `ir.Graph`.

    `default` is returned when the node does not carry the attribute (pass ONNX's default for the operator).
    """
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    if found.type == ir.AttributeType.TENSOR:
        return np.asarray(found.as_tensor().numpy())
    return tuple(found.value) if isinstance(found.value, (list, tuple)) else found.value


def replace_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Make `value` the input `index` of `node`; a missing optional input before or at `index` is created as absent."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; where `old` was a graph output, `new` takes over its name.

    Raises:
        ValueError: `old` is a graph output but `new` cannot bear its name, being an input, a constant or an output.
    """
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output():
            raise ValueError(f"'{new.name}' cannot take the place of the graph output '{old.name}': add an Identity")
        name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    else:
        old.replace_all_uses_with(new)


def fresh_name(model: ir.Model, hint: str) -> str:
    """`hint`, or `hint_1`, `hint_2`, ...: the first that no value or node of the model bears.

    The names in use are collected at the first call on a model object and remembered with those handed out, so a call
    costs no walk over the graph, two calls never return the same name, and new names should all come from here.
    """
    taken: set[str] | None = model.meta.get(_NAMES)
    if taken is None:
        taken = model.meta[_NAMES] = set(_names(model))
    name, count = hint, 0
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    taken.add(name)
    return name


def forget_names(model: ir.Model) -> None:
    """Let the next `fresh_name` look at the model again: call it after names were given in another way."""
    model.meta.pop(_NAMES, None)


def add_initializer(model: ir.Model, hint: str, array: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """A new initializer of the main graph under a fresh name derived from `hint`."""
    name = fresh_name(model, hint)
    tensor = ir.tensor(array, name=name) if isinstance(array, (np.ndarray, np.generic)) else array
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def remove_unread(model: ir.Model) -> None:
    """Drop the nodes and the initializers that nothing reads, in place."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    forget_names(model)


def clone(model: ir.Model) -> ir.Model:
    """An independent copy that shares the weight arrays; what `model.meta` holds is shared too, shallowly."""
    copied = model.clone()
    copied.meta.update({key: held for key, held in model.meta.items() if key != _NAMES})
    for value in values(copied):
        value.type = copy.copy(value.type)  # `value.dtype = ...` edits the type object in place
    return copied


def fingerprint(model: ir.Model) -> str:
    """SHA-256 (hexadecimal) of the model's content: opsets, metadata, graphs, attributes and weights."""
    digest = hashlib.sha256()
    _feed(digest, sorted(model.opset_imports.items()), sorted(model.metadata_props.items()))
    _feed_graph(digest, model.graph)
    for key in sorted(model.functions):
        function = model.functions[key]
        _feed(digest, key, sorted(function.attributes))
        _feed_graph(digest, function.graph)
    return digest.hexdigest()


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Every input, initializer and node output, bodies included; an initializer that is also an input comes twice."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _names(model: ir.Model) -> Iterator[str]:
    yield from (value.name for value in values(model) if value.name)
    yield from (node.name for node in nodes(model) if node.name)


def _feed(digest: hashlib._Hash, *parts: object) -> None:
    for part in parts:
        text = repr(part).encode()
        digest.update(struct.pack("<Q", len(text)))
        digest.update(text)


def _feed_graph(digest: hashlib._Hash, graph: ir.Graph) -> None:
    _feed(digest, _signature(graph.inputs), _signature(graph.outputs), sorted(graph.initializers))
    for name in sorted(graph.initializers):
        tensor = graph.initializers[name].const_value
        if tensor is not None:
            _feed_tensor(digest, tensor)
    for node in graph:
        inputs = [value.name if value is not None else None for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        _feed(digest, node.domain, node.op_type, node.overload, node.name, inputs, outputs)
        for key in sorted(node.attributes):
            _feed_attribute(digest, node.attributes[key])


def _signature(values: Iterable[ir.Value]) -> list[tuple[str | None, str, str]]:
    return [(value.name, str(value.type), str(value.shape)) for value in values]


def _feed_attribute(digest: hashlib._Hash, attr: ir.Attr) -> None:
    _feed(digest, attr.name, attr.type.name, attr.ref_attr_name)
    if attr.is_ref():
        return
    match attr.type:
        case ir.AttributeType.GRAPH:
            _feed_graph(digest, attr.as_graph())
        case ir.AttributeType.GRAPHS:
            for graph in attr.as_graphs():
                _feed_graph(digest, graph)
        case ir.AttributeType.TENSOR:
            _feed_tensor(digest, attr.as_tensor())
        case ir.AttributeType.TENSORS:
            for tensor in attr.as_tensors():
                _feed_tensor(digest, tensor)
        case _:
            _feed(digest, attr.value)


def _feed_tensor(digest: hashlib._Hash, tensor: ir.TensorProtocol) -> None:
    _feed(digest, tensor.dtype.name, tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.StringTensor):
        _feed(digest, list(tensor.string_data()))
    elif tensor.dtype.bitwidth < 8:
        digest.update(tensor.tobytes())  # packed: the unpacked array's spare bits mean nothing
    else:
        digest.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
