"""Placement: which layers compute with integers, and which values must therefore be integers.

Nothing is quantized for its own sake. A *layer* (a node with constant weights and an integer kernel on the target) asks
for its input, and for its output where its kernel needs that; operators that only move values pass the wish on to their
input, sharing its parameters; sums and pools between integer values stay integer where all their neighbours are. What no
integer layer asks for stays in floating point: residual sums of transformers, softmax, masks, normalisations, gates.

The result is a `Placement`: layers with their mode, and *spaces*: sets of values that share one scale and zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.model import attribute, constant, consumers, is_constant
from pumice.quantize.target import Mode, Target

STEP = "quantize"


@attrs.frozen(eq=False)
class Layer:
    """A node that will compute with (or at least store) integer weights."""

    node: ir.Node
    mode: Mode
    weight: int
    """Index of the weight input."""
    axis: int
    """Output-channel axis of the weights (the row axis of an embedding table)."""
    bias: int | None = None
    """Index of the bias input, if the operator has one here."""

    @property
    def data(self) -> ir.Value:
        """The activation the layer reads."""
        value = self.node.inputs[1 if self.node.op_type == "Gather" else 0]
        assert value is not None
        return value

    @property
    def weight_value(self) -> ir.Value:
        value = self.node.inputs[self.weight]
        assert value is not None
        return value


@attrs.define(eq=False)
class Placement:
    """What is to be quantized, in graph order."""

    layers: tuple[Layer, ...]
    space_of: dict[ir.Value, int]
    """Values that are to be quantized, with the number of the space whose parameters they share."""
    absorbed: dict[ir.Value, ir.Node]
    """For a layer output that is quantized only after its activation: the activation node."""
    integer_nodes: frozenset[ir.Node]
    """Nodes that read integers: static layers, pass-through and arithmetic nodes between integer values."""
    writes_integers: frozenset[ir.Value]
    """Values whose every reader must read the quantized value, because their producer's kernel writes integers."""

    def spaces(self) -> dict[int, list[ir.Value]]:
        found: dict[int, list[ir.Value]] = {}
        for value, space in self.space_of.items():
            found.setdefault(space, []).append(value)
        return found


def find_layers(
    model: ir.Model,
    target: Target,
    ledger: Ledger,
    *,
    excluded: Callable[[ir.Node], str | None],
    choose_mode: Callable[[ir.Node, tuple[Mode, ...]], Mode],
    smallest: int,
) -> list[Layer]:
    """Every node that can be a layer on the target; each node looked at gets its ledger line when it is not one."""
    layers = []
    for node in model.graph:
        rule = target.layers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            continue
        layer = _layer_of(node)
        reason = _refusal(node, layer, smallest) or excluded(node)
        if layer is None or reason:
            say = ledger.skipped if layer is None else ledger.declined
            say(STEP, node.name or "", node.op_type, reason or "")
            continue
        layers.append(attrs.evolve(layer, mode=choose_mode(node, rule.modes)))
    return layers


def _layer_of(node: ir.Node) -> Layer | None:
    """The layer that a node with constant weights would be; None if its weights are computed while the model runs."""
    inputs = node.inputs
    if node.op_type == "Gather":
        table = is_constant(inputs[0]) and not is_constant(inputs[1]) and attribute(node, "axis", 0) == 0
        return Layer(node, "weight-only", weight=0, axis=0) if table else None
    if len(inputs) < 2 or not is_constant(inputs[1]) or is_constant(inputs[0]):
        return None
    if len(inputs) > 2 and inputs[2] is not None and not is_constant(inputs[2]):
        return None
    bias = 2 if len(inputs) > 2 and inputs[2] is not None else None
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            axis = 0 if attribute(node, "transB", 0) else 1
        case _:
            axis = -1
    weight = inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 2
    return Layer(node, "static", weight=1, axis=axis % rank, bias=bias)


def _refusal(node: ir.Node, layer: Layer | None, smallest: int) -> str | None:
    if layer is None:
        return "it has no constant weights: both its inputs are computed while the model runs"
    weight = layer.weight_value
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}, only float32 is quantized"
    shape = weight.shape
    if shape is None or len(shape) < 2:
        return "its weights are a vector: there is nothing to gain"
    if int(np.prod(shape.numpy())) < smallest:
        return f"it has fewer than {smallest} weights: integers would cost more than they save"
    if node.op_type == "Gemm" and (
        attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    ):
        return "Gemm with transA, alpha or beta has no integer kernel"
    return None


def place(model: ir.Model, target: Target, layers: list[Layer]) -> Placement:
    """Work out which values are quantized and which share their parameters."""
    return _Placer(model, target, layers).run()


@attrs.define(eq=False)
class _Placer:
    model: ir.Model
    target: Target
    layers: list[Layer]
    parent: dict[ir.Value, ir.Value] = attrs.field(factory=dict)
    absorbed: dict[ir.Value, ir.Node] = attrs.field(factory=dict)
    written: set[ir.Value] = attrs.field(factory=set)

    def run(self) -> Placement:
        for layer in self.layers:
            if layer.mode == "static":
                self._want(layer.data)
                if self.target.layers[layer.node.op_type].output == "required":
                    self._want_output(layer.node)
        self._spread()
        integer = self._integer_nodes()
        numbers: dict[ir.Value, int] = {}
        space_of = {v: numbers.setdefault(self._root(v), len(numbers)) for v in self._in_order() if v in self.parent}
        return Placement(tuple(self.layers), space_of, self.absorbed, integer, frozenset(self.written))

    # -- wishes and shared spaces (a union-find over values) --

    def _want(self, value: ir.Value) -> None:
        self.parent.setdefault(value, value)

    def _root(self, value: ir.Value) -> ir.Value:
        while self.parent[value] is not value:
            value = self.parent[value]
        return value

    def _share(self, a: ir.Value, b: ir.Value) -> None:
        self._want(a)
        self._want(b)
        self.parent[self._root(b)] = self._root(a)

    def _want_output(self, node: ir.Node) -> None:
        """The value the kernel writes: after the activation where that vanishes into the range."""
        output = node.outputs[0]
        readers = consumers(output)
        if len(readers) == 1 and not output.is_graph_output() and absorbable(readers[0], self.target):
            self.absorbed[output] = readers[0]
            output = readers[0].outputs[0]
        self._want(output)
        self.written.add(output)

    def _spread(self) -> None:
        """Hand wishes upwards through pass-through nodes until nothing changes, sharing spaces as it goes."""
        for node in reversed(list(self.model.graph)):
            if node.op_type not in self.target.pass_through or node.domain not in ("", "ai.onnx"):
                continue
            wanted = [v for v in node.outputs if v in self.parent]
            sources = list(_moved(node))
            if wanted and sources and all(v.dtype == ir.DataType.FLOAT and self._rooted(v) for v in sources):
                for value in (*node.outputs, *sources):
                    self._share(sources[0], value)

    def _rooted(self, value: ir.Value) -> bool:
        """Whether integers are there to be moved: wanted anyway, or computed from integers.

        A wish is not handed up to a floating-point producer: moving its integers instead of its numbers gains nothing.
        """
        producer = value.producer()
        if value in self.parent or producer is None:
            return value in self.parent
        if producer.op_type in self.target.pass_through:
            return all(not is_constant(v) and self._rooted(v) for v in _moved(producer))
        if absorbable(producer, self.target) or producer.op_type in self.target.arithmetic:
            count = 1 if producer.op_type in self.target.absorbed else len(producer.inputs)
            return all(v is not None and not is_constant(v) and self._rooted(v) for v in producer.inputs[:count])
        return False

    def _integer_nodes(self) -> frozenset[ir.Node]:
        found = {layer.node for layer in self.layers if layer.mode == "static"}
        for node in self.model.graph:
            moves = node.op_type in self.target.pass_through
            if moves or node.op_type in self.target.arithmetic:
                read = list(_moved(node)) if moves else [v for v in node.inputs if v is not None]
                written = [*node.outputs] if moves else [self._after_activation(node)]
                if read and all(v in self.parent for v in (*read, *written)):
                    found.add(node)
        return frozenset(found)

    def _after_activation(self, node: ir.Node) -> ir.Value:
        output = node.outputs[0]
        readers = consumers(output)
        if output not in self.parent and len(readers) == 1 and absorbable(readers[0], self.target):
            if readers[0].outputs[0] in self.parent:
                self.absorbed[output] = readers[0]
                return readers[0].outputs[0]
        return output

    def _in_order(self) -> Iterator[ir.Value]:
        yield from self.model.graph.inputs
        for node in self.model.graph:
            yield from node.outputs


def _moved(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs whose values a pass-through node moves (not shapes or indices)."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    yield from (value for value in inputs if value is not None)


def absorbable(node: ir.Node, target: Target) -> bool:
    """Whether an activation node vanishes into the range of an asymmetric quantized value: Relu, or Clip from 0."""
    if node.op_type not in target.absorbed or target.activation_symmetric:
        return False
    return node.op_type == "Relu" or clip_bounds(node) is not None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """(low, high) of a Relu or of a Clip with constant bounds around zero; None if unknown."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        given = node.inputs[index] if index < len(node.inputs) else None
        value = constant(given)
        if given is not None and value is None:
            return None
        bounds.append(default if value is None else float(value.reshape(())))
    low, high = bounds
    return (low, high) if low <= 0.0 <= high and low > -np.inf else None


QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulNBits",
    }
)


def already_quantized(model: ir.Model) -> str | None:
    """The reason why a model that holds quantized operators is not quantized again, or None."""
    found = next((node for node in model.graph if node.op_type in QUANTIZED_OPS), None)
    if found is None:
        return None
    return f"it is already quantized (node '{found.name}' is a {found.op_type}): start from the floating-point model"
