"""What a model must satisfy before pumice works on it; each violation is one sentence.

Structure (every value read is produced, no cycle, at least one output), operators (defined by ONNX at the model's
opset, by `com.microsoft`, or by the model's own functions), weights (finite) and, last, ONNX's own checker (order,
unique names, attributes, arities) on the model without its weights.

Weights: a NaN anywhere is refused, and so is an infinity in a constant that feeds a layer's arithmetic (a
convolution, a product, a normalisation, a recurrence). Elsewhere an infinity is ordinary: attention masks are made of
it.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from pumice.errors import ModelError, nearest
from pumice.model.graph import nodes
from pumice.model.skeleton import as_inputs, strip
from pumice.model.tensors import not_finite
from pumice.model.weights import WEIGHT_INPUTS

CARRIED_DOMAINS = frozenset({"com.microsoft"})
"""Domains whose operators are carried without ONNX defining them, because the runtimes do."""

_LAYERS = frozenset(WEIGHT_INPUTS) | {
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization",
    "PRelu",
}  # fmt: skip


def check(model: ir.Model) -> None:
    """Refuse a model that pumice or a runtime could not use.

    Raises:
        ModelError: the first violation found, naming the node, value or tensor.
    """
    if not model.graph.outputs:
        raise ModelError("the graph has no outputs: export the model with at least one")
    check_wiring(model)
    check_operators(model)
    check_weights(model)
    check_schema(model)


def check_wiring(model: ir.Model) -> None:
    """Every value that is read or returned has a producer, and no value depends on itself.

    Raises:
        ModelError: a value without a producer, or a cycle.
    """
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and _dangling(value):
                    raise ModelError(
                        f"node '{node.name}' ({node.op_type}) reads '{value.name}', which nothing produces: "
                        "export the model again"
                    )
        for value in graph.outputs:
            if _dangling(value):
                raise ModelError(f"the output '{value.name}' is not produced by any node: export the model again")
    _check_acyclic(model)


def _dangling(value: ir.Value) -> bool:
    return value.producer() is None and not (value.is_graph_input() or value.is_initializer())


def _check_acyclic(model: ir.Model) -> None:
    for graph in model.graphs():
        before = {
            node: tuple(p for inner in (node, *inner_nodes(node)) for p in inner.predecessors() if p.graph is graph)
            for node in graph
        }
        try:
            graphlib.TopologicalSorter(before).prepare()
        except graphlib.CycleError as error:
            names = " -> ".join(f"'{node.name}'" for node in reversed(error.args[1][:6]))
            raise ModelError(f"the graph has a cycle through {names}: export the model again") from error


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of a control-flow node's bodies, at any depth."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            yield from attr.as_graph().all_nodes()
        elif attr.type == ir.AttributeType.GRAPHS:
            for graph in attr.as_graphs():
                yield from graph.all_nodes()


def check_operators(model: ir.Model) -> None:
    """Every operator is one that ONNX, `com.microsoft` or the model itself defines.

    Raises:
        ModelError: an unknown operator or domain, or an operator that the opset has removed.
    """
    for node in nodes(model):
        if node.domain in CARRIED_DOMAINS or node.op_identifier() in model.functions:
            continue
        known = _operators_of(node.domain)
        if not known:
            raise ModelError(
                f"node '{node.name}' uses the operator '{node.op_type}' of the unknown domain '{node.domain}': "
                "export the model with standard ONNX operators"
            )
        if node.op_type not in known:
            raise ModelError(
                f"node '{node.name}' uses the operator '{node.op_type}', which ONNX does not define"
                f"{nearest(node.op_type, known) if node.domain == '' else ''}: export the model with standard operators"
            )
        _check_version(node, model.opset_imports.get(node.domain))


@functools.cache
def _operators_of(domain: str) -> frozenset[str]:
    return frozenset(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == domain)


def _check_version(node: ir.Node, opset: int | None) -> None:
    if opset is None:
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) belongs to the domain '{node.domain}', for which the model does not "
            "say a version: export the model again"
        )
    try:
        removed = onnx.defs.get_schema(node.op_type, opset, node.domain).deprecated
    except onnx.defs.SchemaError:
        removed = True
    if removed:
        raise ModelError(
            f"node '{node.name}' uses the operator '{node.op_type}', which opset {opset} of "
            f"'{node.domain or 'ai.onnx'}' does not have: export the model with another opset"
        )


def check_weights(model: ir.Model) -> None:
    """Weights hold no NaN, and layers no infinity.

    Raises:
        ModelError: names the tensor and how many of its items are not finite.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is None:
                continue
            nan, infinite = not_finite(value.const_value)
            if not any(use.op_type in _LAYERS for use in value.consumers()):
                infinite = 0
                nan = nan if value.const_value.size > 1 else 0
            if nan or infinite:
                raise ModelError(
                    f"tensor '{value.name}' holds {nan} NaN and {infinite} infinite values among "
                    f"{value.const_value.size}: the network was damaged in training or export, use a good checkpoint"
                )


def check_schema(model: ir.Model) -> None:
    """ONNX's checker (attributes, arities, types, name scopes), run without the weights.

    Raises:
        ModelError: the checker's complaint.
    """
    proto = as_inputs(strip(model)[0])
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        complaint = " ".join(str(error).split())
        raise ModelError(f"the model does not pass ONNX's checker: {complaint}") from error
