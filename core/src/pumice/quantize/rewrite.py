"""Rewriting: a placement and its parameters become QuantizeLinear and DequantizeLinear nodes.

    static       x -> Q -> DQ --.
                  DQ(weights) -> Conv -> [Relu] -> Q -> DQ       a runtime with integer kernels fuses this
    dynamic      DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(scales) [-> Add bias]
    weight-only  DQ(weights) -> layer;  an embedding reads integer rows and scales them after the look-up; a small table
                 is Cast(integers) -> Mul(scales), which a runtime computes once, when it loads the model

Names are kept: a value that is quantized keeps its name for what its producer computes, a layer keeps its node name.
What is new is only numbered: descriptive names took a tenth of small files.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, consumers, fresh_name, replace_input
from pumice.quantize.channel_scaling import Rescaling
from pumice.quantize.folding import folded_into_producers, gate_of, read_by_none_but
from pumice.quantize.hard_swish import CLIP, MIDDLE
from pumice.quantize.parameters import QuantParams
from pumice.quantize.placement import Layer, Placement

EXPANDED_AT_LOAD = 1 << 18
"""Numbers of a table whose look-ups are worth more than the memory it takes in floating point."""


@attrs.frozen(kw_only=True, eq=False)
class QuantizedWeights:
    """What replaces the weights and the bias of a layer."""

    integers: NDArray[np.int8]
    """Shape of the layer's weights."""
    params: QuantParams
    bias: NDArray[np.float64] | None = None
    """The bias to use, corrected; None if the layer needs none or keeps its own."""
    bits: int = 8
    """Bits that the integers use."""


@attrs.frozen(eq=False)
class Bias:
    """The bias that a layer adds in the rewritten model."""

    name: str
    """Of the layer's output, in the model in floating point."""
    output: ir.Value
    """What the layer writes, the bias included."""
    axis: int
    """Of its channels."""
    initializer: ir.Value
    units: NDArray[np.float32] | None = None
    """What an integer of the bias stands for; None for real numbers."""


def rewrite(
    model: ir.Model,
    placement: Placement,
    parameters: Mapping[int, QuantParams],
    weights: Mapping[ir.Node, QuantizedWeights],
    factors: Mapping[int, Rescaling],
    running_factors: Mapping[str, NDArray[np.float64]],
    *,
    swishes: Collection[ir.Node] = (),
    integer_bias: bool = True,
) -> dict[ir.Node, Bias]:
    """Edit `model`, to whose values and nodes everything refers, in place; returns the biases of the layers.

    `factors` (by space) and `running_factors` (by name of the value a dynamic layer reads): see `channel_scaling`.
    `swishes` become integer arithmetic (see `hard_swish`). With `integer_bias` static layers add integers, in units of
    their products; otherwise real numbers.
    """
    dynamic = frozenset(layer.node for layer in placement.layers if layer.mode == "dynamic")
    rewriter = _Rewriter(model, placement, parameters, factors, running_factors, integer_bias, dynamic)
    for layer in placement.layers:
        if layer.mode == "dynamic":
            rewriter.dynamic(layer, weights[layer.node])
        elif layer.node.op_type == "Gather":
            rewriter.embedding(layer, weights[layer.node])
        else:
            rewriter.weights(layer, weights[layer.node])
    for value in list(placement.space_of):
        rewriter.activation(value)
    for node in (node for node in list(model.graph) if node in swishes):
        rewriter.hard_swish(node)
    for activation in dict.fromkeys(placement.absorbed.values()):
        rewriter.remove_activation(activation)
    rewriter.remove_unread_weights()
    model.graph.sort()
    return rewriter.biases


@attrs.define(eq=False)
class _Rewriter:
    model: ir.Model
    placement: Placement
    parameters: Mapping[int, QuantParams]
    factors: Mapping[int, Rescaling]
    running_factors: Mapping[str, NDArray[np.float64]]
    integer_bias: bool
    dynamic_nodes: frozenset[ir.Node]
    dequantized_weights: dict[tuple[ir.Value, bytes], ir.Value] = attrs.field(factory=dict)
    dynamic_inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = attrs.field(factory=dict)
    scaled: dict[tuple[ir.Value, ir.Value], ir.Value] = attrs.field(factory=dict)
    constants: dict[tuple[str, bytes], ir.Value] = attrs.field(factory=dict)
    biases: dict[ir.Node, Bias] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=itertools.count)

    def hint(self) -> str:
        """A short name, if nothing else bears it."""
        return f"q/{next(self.numbers)}"

    def name(self) -> str:
        return fresh_name(self.model, self.hint())

    def node(
        self, op: str, inputs: list[ir.Value | None], dtype: ir.DataType | None, outputs: int = 1, **attributes: int
    ) -> ir.Node:
        """A node at the end of the graph."""
        made = ir.node(op, inputs, attributes=attributes, num_outputs=outputs, name=self.name())
        for value in made.outputs:
            value.name = self.name()
            if dtype is not None:
                value.dtype = dtype
        self.model.graph.append(made)
        return made

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """An initializer; equal ones are shared."""
        key = (f"{array.dtype}{array.shape}", hashlib.sha256(np.ascontiguousarray(array).data).digest())
        if key not in self.constants:
            self.constants[key] = add_initializer(self.model, self.hint(), array)
        return self.constants[key]

    # -- activations --

    def activation(self, value: ir.Value) -> None:
        """Q and DQ after `value`; the readers that compute with integers (or all, see Placement) read the result."""
        if value in self.placement.absorbed:
            return
        integer = [n for n in consumers(value) if n in self.placement.integer_nodes]
        everyone = value in self.placement.writes_integers
        others = [n for n in consumers(value) if n not in self.placement.integer_nodes] if everyone else []
        leaves = everyone and value.is_graph_output()
        if not (integer or others or leaves):
            return
        quantized = self._quantize(value)
        if integer:
            self._reread(integer, value, self._dequantize(value, quantized, whole=False))
        if others and self._factor(value) is not None:
            others = self._scale_gates(value, quantized, others)
        if others or leaves:
            result = self._dequantize(value, quantized, whole=True)
            self._reread(others, value, result)
            if leaves:
                self._become_output(value, result)

    def _scale_gates(self, value: ir.Value, quantized: ir.Value, readers: list[ir.Node]) -> list[ir.Node]:
        """Let gates, rather than the value, be multiplied by its factors; the readers for which that is not enough."""
        if self.factors[self.placement.space_of[value]].offset is not None:
            return readers
        gates = {reader: index for reader in readers if (index := gate_of(value, reader)) is not None}
        factor = self._factor(value)
        for reader, index in gates.items():
            gate = reader.inputs[index]
            assert gate is not None
            assert factor is not None
            reader.replace_input_with(index, self._combined("Mul", gate, factor))
        if gates:
            self._reread(list(gates), value, self._dequantize(value, quantized, whole=False))
        return [reader for reader in readers if reader not in gates]

    def _scales(self, value: ir.Value) -> list[ir.Value | None]:
        """Scale and zero point of a value as initializers."""
        params = self.parameters[self.placement.space_of[value]]
        return [self.constant(params.scale), self.constant(params.zero_point)]

    def _factor(self, value: ir.Value) -> NDArray[np.float64] | None:
        """t of the value's space, shaped to broadcast over its channels; None if it has none."""
        rescaling = self.factors.get(self.placement.space_of[value])
        if rescaling is None or value.shape is None:
            return None
        return _along_channels(value, rescaling.factor)

    def _combined(self, op: str, value: ir.Value, array: NDArray[np.float64]) -> ir.Value:
        """A new value: `value` multiplied by an array, or with it added."""
        result = self.node(op, [value, self.constant(array.astype(np.float32))], value.dtype).outputs[0]
        result.shape = value.shape
        return result

    def _quantize(self, value: ir.Value) -> ir.Value:
        source, dtype = value, self.parameters[self.placement.space_of[value]].dtype
        factor = None if self._writes_integers(value) else self._factor(value)
        if factor is not None and not self._fold(value, 1.0 / factor, self.placement.integer_nodes):
            source = self._combined("Mul", value, 1.0 / factor)
        node = self.node("QuantizeLinear", [source, *self._scales(value)], ir.DataType.from_numpy(dtype))
        node.outputs[0].shape = value.shape
        return node.outputs[0]

    def _fold(self, value: ir.Value, factor: NDArray[np.float64], readers: Collection[ir.Node]) -> bool:
        """Let the constants that compute the value multiply it by `factor`, if `readers` alone read it."""
        if not read_by_none_but(value, readers):
            return False
        found = folded_into_producers(value, factor, may_change=lambda inner: inner not in self.placement.space_of)
        for known in found or ():
            replace_input(known.node, known.index, self.constant(known.array))
        return found is not None

    def _dequantize(self, value: ir.Value, quantized: ir.Value, *, whole: bool) -> ir.Value:
        """The real value; `whole` with its factors multiplied back, otherwise as the integer layers want it."""
        node = self.node("DequantizeLinear", [quantized, *self._scales(value)], value.dtype)
        result = node.outputs[0]
        result.shape = value.shape
        factor = self._factor(value) if whole else None
        if factor is not None:
            result = self._combined("Mul", result, factor)
            offset = self.factors[self.placement.space_of[value]].offset
            if offset is not None:
                result = self._combined("Add", result, _along_channels(value, offset))
        return result

    def _writes_integers(self, value: ir.Value) -> bool:
        """Whether the node that computes the value (before an absorbed activation) has an integer kernel."""
        producer = value.producer()
        if producer is not None and producer in self.placement.absorbed.values():
            source = producer.inputs[0]
            producer = source.producer() if source is not None else None
        return producer in self.placement.integer_nodes

    @staticmethod
    def _reread(readers: list[ir.Node], old: ir.Value, new: ir.Value) -> None:
        for reader in readers:
            for index, given in enumerate(reader.inputs):
                if given is old:
                    reader.replace_input_with(index, new)

    def _become_output(self, value: ir.Value, result: ir.Value) -> None:
        name = value.name
        value.name = fresh_name(self.model, f"{name}/float")
        result.name, result.type, result.shape = name, value.type, value.shape
        for position, output in enumerate(self.model.graph.outputs):
            if output is value:
                self.model.graph.outputs[position] = result

    def remove_activation(self, activation: ir.Node) -> None:
        """An activation that vanished into a range: its readers (the Q) read the layer itself."""
        source, result = activation.inputs[0], activation.outputs[0]
        assert source is not None
        result.replace_all_uses_with(source)
        self.model.graph.remove(activation, safe=True)

    # -- weights --

    def weights(self, layer: Layer, quantized: QuantizedWeights) -> None:
        replace_input(layer.node, layer.weight, self._dequantized(layer, quantized))
        if quantized.bias is None:
            return
        if layer.mode == "static" and self.integer_bias:
            value = self._integer_bias(layer, quantized, quantized.bias)
        else:
            value = add_initializer(self.model, self.hint(), quantized.bias.astype(np.float32))
            self._keep_bias(layer, layer.node.outputs[0], value)
        replace_input(layer.node, 2, value)

    def _dequantized(self, layer: Layer, quantized: QuantizedWeights) -> ir.Value:
        key = (
            layer.weight_value,
            hashlib.sha256(quantized.integers.tobytes() + quantized.params.scale.tobytes()).digest(),
        )
        if key in self.dequantized_weights:
            return self.dequantized_weights[key]
        params = quantized.params
        integers = add_initializer(self.model, self.hint(), quantized.integers)
        inputs: list[ir.Value | None] = [integers, self.constant(params.scale)]
        if layer.node.op_type != "Conv":  # onnxruntime's QGemm asks for zeros that are the default
            inputs.append(self.constant(params.zero_point))
        axis = {} if params.axis is None else {"axis": params.axis}
        node = self.node("DequantizeLinear", inputs, ir.DataType.FLOAT, **axis)
        node.outputs[0].shape = ir.Shape(quantized.integers.shape)
        self.dequantized_weights[key] = node.outputs[0]
        return node.outputs[0]

    def _integer_bias(self, layer: Layer, quantized: QuantizedWeights, bias: NDArray[np.float64]) -> ir.Value:
        """int32 with scale input x weights, so that the kernel adds it to its accumulator."""
        source = self.parameters[self.placement.space_of[layer.data]]
        scale = np.atleast_1d(source.scale * quantized.params.scale).astype(np.float32)
        scale = np.ascontiguousarray(np.broadcast_to(scale, bias.shape))
        most = 2.0**31 - 1
        integers = np.clip(np.rint(bias / scale.astype(np.float64)), -most, most).astype(np.int32)
        value = add_initializer(self.model, self.hint(), integers)
        self._keep_bias(layer, layer.node.outputs[0], value, scale)
        node = self.node("DequantizeLinear", [value, self.constant(scale)], ir.DataType.FLOAT, axis=0)
        return node.outputs[0]

    def _keep_bias(
        self, layer: Layer, output: ir.Value, initializer: ir.Value, units: NDArray[np.float32] | None = None
    ) -> None:
        axis = 1 if layer.node.op_type == "Conv" else -1
        self.biases[layer.node] = Bias(layer.last.outputs[0].name or "", output, axis, initializer, units)

    def remove_unread_weights(self) -> None:
        """Float weights and biases that nobody reads any more."""
        initializers = self.model.graph.initializers
        for name in [n for n, v in initializers.items() if not v.uses() and not v.is_graph_output()]:
            initializers.pop(name)

    # -- forms that are not Q/DQ --

    def hard_swish(self, node: ir.Node) -> None:
        """Sum and product of integers between which the clip and the division are a matter of scales."""
        source = node.inputs[0]
        dtype = self.parameters[self.placement.space_of[node.outputs[0]]].dtype
        lowest, steps = np.iinfo(dtype).min, np.iinfo(dtype).max - np.iinfo(dtype).min
        zero, kind = self.constant(np.asarray(lowest, dtype)), ir.DataType.from_numpy(dtype)
        one, three = self.constant(np.asarray(lowest + 1, dtype)), self.constant(np.asarray(MIDDLE, np.float32))
        middle = self.node("DequantizeLinear", [one, three, zero], ir.DataType.FLOAT)
        moved = self.node("Add", [source, middle.outputs[0]], ir.DataType.FLOAT)
        clipped_scale = self.constant(np.asarray(CLIP / steps, np.float32))
        clipped = self.node("QuantizeLinear", [moved.outputs[0], clipped_scale, zero], kind)
        share_scale = self.constant(np.asarray(1.0 / steps, np.float32))
        share = self.node("DequantizeLinear", [clipped.outputs[0], share_scale, zero], ir.DataType.FLOAT)
        self._take_over(node, self.node("Mul", [source, share.outputs[0]], ir.DataType.FLOAT))

    def dynamic(self, layer: Layer, quantized: QuantizedWeights) -> None:
        """The activation's scale is found while the model runs; integer products, then one product by both scales."""
        integer, scale, zero = self._dynamic_input(layer.data)
        weights = self.constant(quantized.integers if layer.axis else np.ascontiguousarray(quantized.integers.T))
        product = self.node("MatMulInteger", [integer, weights, zero], ir.DataType.INT32)
        real = self.node("Cast", [product.outputs[0]], ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
        weight_scale = self.constant(np.atleast_1d(quantized.params.scale))
        factor = self.node("Mul", [scale, weight_scale], ir.DataType.FLOAT)
        result = self.node("Mul", [real.outputs[0], factor.outputs[0]], ir.DataType.FLOAT)
        if quantized.bias is not None:
            value = add_initializer(self.model, self.hint(), quantized.bias.astype(np.float32))
            result = self.node("Add", [result.outputs[0], value], ir.DataType.FLOAT)
            self._keep_bias(layer, result.outputs[0], value)
        self._take_over(layer.last, result)
        if layer.sum is not None:
            self.model.graph.remove(layer.node, safe=True)

    def _dynamic_input(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if value not in self.dynamic_inputs:
            source, factors = value, self.running_factors.get(value.name or "")
            if factors is not None and not self._fold(value, 1.0 / factors, self.dynamic_nodes):
                source = self._combined("Mul", value, 1.0 / factors)
            made = self.node("DynamicQuantizeLinear", [source], None, outputs=3)
            integer, scale, zero = made.outputs
            integer.dtype, scale.dtype, zero.dtype = ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8
            self.dynamic_inputs[value] = (integer, scale, zero)
        return self.dynamic_inputs[value]

    def embedding(self, layer: Layer, quantized: QuantizedWeights) -> None:
        """Look up integer rows and their scales, and expand the rows that are used; or a small table, at load."""
        rows = layer.node.inputs[1]
        per_row = quantized.params.scale.reshape(-1, *[1] * (quantized.integers.ndim - 1))
        if quantized.integers.size <= EXPANDED_AT_LOAD:
            replace_input(layer.node, 0, self._scaled(self.constant(quantized.integers), self.constant(per_row)))
            return
        row = self.node("Gather", [self.constant(quantized.integers), rows], ir.DataType.INT8, axis=0)
        scale = self.node("Gather", [self.constant(per_row), rows], ir.DataType.FLOAT, axis=0)
        result = self._scaled(row.outputs[0], scale.outputs[0]).producer()
        assert result is not None
        self._take_over(layer.node, result)

    def _scaled(self, integers: ir.Value, scale: ir.Value) -> ir.Value:
        """integers * scale, once for all who ask; by operators that runtimes fold where both are constant."""
        if (integers, scale) not in self.scaled:
            real = self.node("Cast", [integers], ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
            product = self.node("Mul", [real.outputs[0], scale], ir.DataType.FLOAT)
            self.scaled[integers, scale] = product.outputs[0]
        return self.scaled[integers, scale]

    def _take_over(self, node: ir.Node, result: ir.Node) -> None:
        """`result` replaces `node`: it takes the name of its output, and its place as a graph output."""
        old, new = node.outputs[0], result.outputs[0]
        new.shape, new.type = old.shape, old.type
        name, old.name = old.name, fresh_name(self.model, f"{old.name}/replaced")
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
        keep, node.name = node.name, fresh_name(self.model, f"{node.name}/replaced")
        result.name = keep
        self.model.graph.remove(node, safe=True)
        if old in self.placement.space_of:
            self.placement.space_of[new] = self.placement.space_of.pop(old)


def _along_channels(value: ir.Value, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number a channel (axis 1), shaped to broadcast over the value."""
    rank = 4 if value.shape is None else len(value.shape)
    return vector.reshape(-1, *[1] * (rank - 2))
