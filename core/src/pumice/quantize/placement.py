"""Placement: which layers compute with integers, and which values must therefore be integers.

Nothing is quantized for its own sake. A *layer* (a node with constant weights and an integer kernel on the target) asks
for its input, and for its output where its kernel needs that; operators that only move values pass the wish on to their
input, sharing its parameters; sums and pools between integer values stay integer where all their neighbours are. What
no integer layer asks for stays in floating point: residual sums of transformers, softmax, masks, normalisations, gates.

An activation such as Relu vanishes if the integers of the value it writes end where it clips. A space in which that
happens holds nothing else: values that are clipped differently never share parameters.

The result is a `Placement`: layers with their mode, and *spaces*: sets of values that share one scale and zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.model import attribute, constant, consumers, is_constant, nodes
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
    sum: ir.Node | None = None
    """The node after a MatMul that adds a vector: its bias. The integer layer adds it itself."""

    @property
    def last(self) -> ir.Node:
        """The node whose output the layer writes."""
        return self.sum or self.node

    @property
    def bias_value(self) -> ir.Value | None:
        """The constant that is the bias, if there is one."""
        if self.sum is not None:
            return next(value for value in self.sum.inputs if is_constant(value))
        return None if self.bias is None else self.node.inputs[self.bias]

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


def weight_shape(layer: Layer) -> tuple[int, ...]:
    shape = layer.weight_value.shape
    assert shape is not None
    return tuple(int(n) for n in shape.numpy())


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
    sums: frozenset[ir.Node] = frozenset()
    """Those of the integer nodes that a convolution computes: one of their inputs stays in floating point."""

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
    choose_mode: Callable[[tuple[Mode, ...]], Mode],
    smallest: int,
) -> list[Layer]:
    """Every node with constant weights that the target knows and that may be quantized.

    A node that could be a layer and is not gets its ledger line here. `choose_mode` picks one of the modes of its rule,
    or `weight-only`, which needs no kernel.
    """
    layers = []
    for node in model.graph:
        rule = target.layers.get(node.op_type) if standard(node) else None
        layer = None if rule is None else _layer_of(node)
        if rule is None or layer is None:
            continue
        reason = _refusal(layer, smallest) or excluded(node)
        if reason:
            ledger.declined(STEP, node.name or "", node.op_type, reason)
        else:
            mode = choose_mode(rule.modes)
            added = _sum_after(layer) if mode == "dynamic" else None
            layers.append(attrs.evolve(layer, mode=mode, sum=None if added is None or excluded(added) else added))
    if choose_mode(("static",)) != "static":
        return layers
    found = _placer(model, target, layers, excluded).written_as_integers()
    return [_static(layer) if layer.data in found and _has_both(layer, target) else layer for layer in layers]


def _has_both(layer: Layer, target: Target) -> bool:
    """Whether a layer that would find its ranges while it runs can as well take those of calibration.

    (A MatMul with a bias cannot: only the kernel of the former adds it.)
    """
    return layer.mode == "dynamic" and layer.sum is None and "static" in target.layers[layer.node.op_type].modes


def _static(layer: Layer) -> Layer:
    return attrs.evolve(layer, mode="static")


def standard(node: ir.Node) -> bool:
    """Whether the node is an operator of ONNX itself."""
    return node.domain in ("", "ai.onnx")


def _layer_of(node: ir.Node) -> Layer | None:
    """The layer that the node would be; None if the weights of its operator are computed while the model runs."""
    index = 0 if node.op_type == "Gather" else 1
    weight = node.inputs[index] if index < len(node.inputs) else None
    data = node.inputs[1 - index] if len(node.inputs) > 1 else None
    if node.op_type == "MatMul" and is_constant(data) and not is_constant(weight):
        return Layer(node, "static", weight=0, axis=0)  # refused, with its reason
    if weight is None or data is None or not is_constant(weight) or is_constant(data):
        return None
    rank = len(weight.shape) if weight.shape is not None else 2
    bias = 2 if len(node.inputs) > 2 and node.inputs[2] is not None else None
    match node.op_type:
        case "Gather" | "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            axis = 0 if attribute(node, "transB", 0) else 1
        case _:
            axis = rank - 1
    return Layer(node, "static", weight=index, axis=axis, bias=bias)


def _sum_after(layer: Layer) -> ir.Node | None:
    """The sum that alone reads what a matrix product writes, and adds one number to each of its columns."""
    output, weight = layer.node.outputs[0], layer.weight_value
    readers = consumers(output)
    if layer.node.op_type != "MatMul" or output.is_graph_output() or len(output.uses()) != 1:
        return None
    (reader,) = readers
    other = next((value for value in reader.inputs if value is not output), None)
    if reader.op_type != "Add" or not standard(reader) or reader.graph is not layer.node.graph or other is None:
        return None
    known = other.dtype == ir.DataType.FLOAT and is_constant(other) and not other.is_graph_input()
    if not known or other.shape is None or output.shape is None or weight.shape is None or len(weight.shape) != 2:
        return None
    *before, last = other.shape.numpy() or (1,)
    fits = last == weight.shape.numpy()[1] and all(n == 1 for n in before) and len(before) < len(output.shape)
    return reader if fits else None


def _refusal(layer: Layer, smallest: int) -> str | None:
    """Why a layer cannot be quantized, or is not worth it."""
    node, weight = layer.node, layer.weight_value
    if node.op_type == "MatMul" and layer.weight == 0:
        return "its weights come first: integer kernels take them second"
    if weight.is_graph_input():
        return "its weights are an input of the model, whose default may be overridden"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weights are {weight.dtype}, only float32 is quantized"
    shape = weight.shape
    if shape is None or len(shape) < 2:
        return "its weights are a vector: there is nothing to gain"
    if int(np.prod(shape.numpy())) < smallest:
        return f"it has fewer than {smallest} weights: integers would cost more than they save"
    if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
        return "it does not select whole rows of its table"
    if node.op_type == "Gemm" and (
        attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    ):
        return "Gemm with transA, alpha or beta has no integer kernel"
    return _bias_refusal(layer)


def _bias_refusal(layer: Layer) -> str | None:
    bias = None if layer.bias is None else layer.node.inputs[layer.bias]
    if bias is None:
        return None
    if not is_constant(bias) or bias.is_graph_input():
        return "its bias is computed while the model runs"
    shape = None if bias.shape is None else tuple(bias.shape.numpy())
    if layer.node.op_type == "Gemm" and shape is not None:
        outputs = int(layer.weight_value.shape.numpy()[layer.axis])  # type: ignore[union-attr]
        if any(n != 1 for n in shape[:-1]) or (shape and shape[-1] not in (1, outputs)):
            return "its bias is not one number for each output"
    return None


def place(model: ir.Model, target: Target, layers: list[Layer], excluded: Callable[[ir.Node], str | None]) -> Placement:
    """Work out which values are quantized and which share their parameters.

    `excluded` says why a node must stay in floating point: it neither passes integers on nor vanishes.
    """
    return _placer(model, target, layers, excluded).run()


def _placer(model: ir.Model, target: Target, layers: list[Layer], excluded: Callable[[ir.Node], str | None]) -> _Placer:
    return _Placer(model, target, layers, frozenset(node for node in model.graph if excluded(node)))


@attrs.define(eq=False)
class _Placer:
    model: ir.Model
    target: Target
    layers: list[Layer]
    excluded: frozenset[ir.Node]
    parent: dict[ir.Value, ir.Value] = attrs.field(factory=dict)
    """A union-find over the values that are to be quantized; its sets are the spaces."""
    absorbed: dict[ir.Value, ir.Node] = attrs.field(factory=dict)
    written: set[ir.Value] = attrs.field(factory=set)
    sums: set[ir.Node] = attrs.field(factory=set)
    """Sums that take place in a convolution's kernel."""

    def run(self) -> Placement:
        for layer in self.layers:
            if layer.mode == "static":
                self._want(layer.data)
                if self.target.layers[layer.node.op_type].output == "required":
                    self._want_output(layer.node)
        if self.target.fused_sums:
            self._fuse_sums()
        self._spread()
        integer = self._integer_nodes()
        self._absorb_between(integer)
        numbers: dict[ir.Value, int] = {}
        space_of = {v: numbers.setdefault(self._root(v), len(numbers)) for v in self._in_order() if v in self.parent}
        return Placement(
            tuple(self.layers), space_of, self.absorbed, integer, frozenset(self.written), frozenset(self.sums)
        )

    # -- wishes and shared spaces --

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
        activation = self._activation_after(node)
        if activation is not None:
            self.absorbed[output] = activation
            output = activation.outputs[0]
        self._want(output)
        self.written.add(output)

    def _activation_after(self, node: ir.Node) -> ir.Node | None:
        """The activation that may vanish, if it alone reads what the node writes."""
        output = node.outputs[0]
        readers = consumers(output)
        if len(readers) != 1 or output.is_graph_output() or readers[0].graph is not node.graph:
            return None
        return readers[0] if self._vanishes(readers[0]) else None

    def _vanishes(self, node: ir.Node) -> bool:
        return node not in self.excluded and absorbable(node, self.target)

    def _computes(self, node: ir.Node) -> bool:
        """Whether the node has integer arithmetic of its own."""
        return node not in self.excluded and node.op_type in self.target.arithmetic and standard(node)

    def _fuse_sums(self) -> None:
        """A sum is computed by the convolution that writes one of its terms, if its other term is integer.

        The later convolution, where both terms come from one. Nothing is gained unless the sum becomes integer too.
        """
        order = {node: number for number, node in enumerate(self.model.graph)}
        convolutions = {layer.node for layer in self.layers if layer.mode == "static" and layer.node.op_type == "Conv"}
        for node in reversed(list(self.model.graph)):
            if node in self.excluded or node.op_type != "Add" or not standard(node) or len(set(node.inputs)) != 2:
                continue
            terms = [v for v in node.inputs if v is not None and v.producer() in convolutions]
            own = [v for v in terms if len(consumers(v)) == 1 and not v.is_graph_output() and v not in self.parent]
            if not own or not self._becomes_integer(node):
                continue
            last = max(own, key=lambda v: order[v.producer()])  # type: ignore[index]
            other = next(v for v in node.inputs if v is not last)
            if other is not None and (other in self.parent or other in terms):
                self._want(other)
                self.sums.add(node)

    def _becomes_integer(self, node: ir.Node) -> bool:
        output = node.outputs[0]
        after = [reader.outputs[0] for reader in consumers(output) if reader.op_type in ("Relu", "Clip")]
        return any(value in self.parent for value in (output, *after))

    def _spread(self) -> None:
        """Hand wishes upwards through pass-through nodes, sharing spaces where all is clipped alike."""
        rooted, clipped = self._rooted(), self._clipped()
        for node in reversed(list(self.model.graph)):
            if not self._moves(node) or not any(v in self.parent for v in node.outputs):
                continue
            sources = list(_moved(node))
            if not sources or not all(v in rooted for v in sources):
                continue
            if len({clipped.get(v) for v in sources}) > 1:
                for value in (*node.outputs, *sources):
                    self._want(value)
            else:
                for value in (*node.outputs, *sources):
                    self._share(sources[0], value)

    def written_as_integers(self) -> set[ir.Value]:
        """Values that kernels write as integers anyway, and what becomes of them."""
        written = {
            layer.node.outputs[0]
            for layer in self.layers
            if layer.mode == "static" and self.target.layers[layer.node.op_type].output == "required"
        }
        return self._with_successors(written, sums=False)  # those become integers only where somebody asks

    def _rooted(self) -> set[ir.Value]:
        """Values of which integers are there to be moved: wanted anyway, or computed from integers.

        A wish is not handed up to a floating-point producer: moving its integers instead of its numbers gains nothing.
        """
        return self._with_successors(set(self.parent), sums=True)

    def _with_successors(self, rooted: set[ir.Value], *, sums: bool) -> set[ir.Value]:
        """These values, and what is moved, clipped, pooled or, perhaps, summed of them alone."""
        for node in self.model.graph:
            if self._moves(node):
                read: list[ir.Value | None] = list(_moved(node))
            elif self._vanishes(node):
                read = list(node.inputs[:1])
            elif self._computes(node) and (sums or len(node.inputs) == 1):
                read = list(node.inputs)
            else:
                continue
            if read and all(v in rooted for v in read):
                rooted.update(v for v in node.outputs if v.dtype == ir.DataType.FLOAT)
        return rooted

    def _moves(self, node: ir.Node) -> bool:
        """Whether the node only moves numbers. (A MaxPool that also writes indices does not.)"""
        return (
            node not in self.excluded
            and node.op_type in self.target.pass_through
            and standard(node)
            and all(v.dtype == ir.DataType.FLOAT for v in (*node.outputs, *_moved(node)))
        )

    def _clipped(self) -> dict[ir.Value, tuple[float, float]]:
        """The bounds of the activation that writes a value, for the value and wherever it is moved."""
        clipped: dict[ir.Value, tuple[float, float]] = {}
        for node in self.model.graph:
            if self._moves(node):
                bounds = {clipped.get(v) for v in _moved(node)}
                found = bounds.pop() if len(bounds) == 1 else None
            else:
                found = clip_bounds(node) if self._vanishes(node) else None
            if found is not None:
                clipped.update(dict.fromkeys(node.outputs, found))
        return clipped

    def _integer_nodes(self) -> frozenset[ir.Node]:
        found = {layer.node for layer in self.layers if layer.mode == "static"} | self.sums
        for node in self.model.graph:
            if self._moves(node):
                integer = all(v in self.parent for v in (*_moved(node), *node.outputs))
            elif self._computes(node):
                integer = all(v in self.parent for v in node.inputs) and self._writes_wanted(node)
            else:
                integer = False
            if integer:
                found.add(node)
        return frozenset(found)

    def _writes_wanted(self, node: ir.Node) -> bool:
        """Whether what the node writes, before or after its activation, is to be quantized."""
        output = node.outputs[0]
        activation = self._activation_after(node)
        if output in self.parent or activation is None or activation.outputs[0] not in self.parent:
            return output in self.parent
        self.absorbed[output] = activation
        self.written.add(activation.outputs[0])
        return True

    def _absorb_between(self, integer: frozenset[ir.Node]) -> None:
        """Activations between layers that may write integers and readers that all want them vanish as well."""
        for layer in self.layers:
            output = layer.node.outputs[0]
            activation = self._activation_after(layer.node)
            if layer.mode != "static" or activation is None or {output, activation.outputs[0]} & self.written:
                continue
            value = activation.outputs[0]
            if value in self.parent and not value.is_graph_output() and set(consumers(value)) <= integer:
                self.absorbed[output] = activation
                self.written.add(value)

    def _in_order(self) -> Iterator[ir.Value]:
        yield from self.model.graph.inputs
        for node in self.model.graph:
            yield from node.outputs


def _moved(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs whose values a pass-through node moves (not shapes or indices)."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    yield from (value for value in inputs if value is not None)


def absorbable(node: ir.Node, target: Target) -> bool:
    """Whether an activation node vanishes into the range of an asymmetric quantized value: Relu, or Clip around 0."""
    if node.op_type not in target.absorbed or not standard(node) or target.activation_symmetric:
        return False
    return clip_bounds(node) is not None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """(low, high) of a Relu or of a Clip with constant bounds around zero; None if they are unknown or not such."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))]  # before opset 11
    for index, given in enumerate(node.inputs[1:3]):
        value = constant(given)
        if given is not None and (value is None or value.size != 1 or given.is_graph_input()):
            return None
        if value is not None:
            bounds[index] = float(value.reshape(()))
    low, high = bounds
    return (low, high) if -np.inf < low <= 0.0 <= high and low < high else None


QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "MatMulInteger",
        "ConvInteger",
        "QGemm",
        "MatMulNBits",
    }
)


def already_quantized(model: ir.Model) -> str | None:
    """The reason why a model that holds quantized operators is not quantized again, or None."""
    for node in nodes(model):
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            return (
                f"it is already quantized (node '{node.name}' is a {node.op_type}): start from the floating-point model"
            )
    return None
