"""The training graph of a quantized model, and back.

A quantized model holds integers: weights behind DequantizeLinear, biases in units of their products. In the training
graph real weights stand before a QuantizeLinear of their own, biases are real, and every scale is Exp of its logarithm:

    q_w -> DQ(s_w)           becomes      w -> Q(exp l_w) -> DQ(exp l_w)
    q_b -> DQ(s_x s_w)       becomes      b -> Q(s) -> DQ(s),  s = exp(l_x) exp(l_w)

Integers of four bits are stored as such and widened to eight before they are dequantized, so that runtimes compute with
their kernels for eight.

`Student.finished` runs the very nodes that were trained and puts what they give back into the quantized model, so both
compute the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, clone, constant, consumers, fresh_name, replace_input, weight_of
from pumice.plan import compile_plan

Array = NDArray[Any]
Pick = Callable[[ir.Node], "ir.Value | None"]
INT4 = np.dtype(ml_dtypes.int4)


@attrs.frozen(eq=False)
class Weight:
    """Names of what stands for the integers of a weight or a bias."""

    dequantize: str
    """The node that reads them, in both graphs."""
    real: str
    """Initializer of the training graph."""
    integers: str
    """Value of the training graph."""
    source: str = ""
    """Initializer of the original model that it begins with; empty where the quantizer rearranged it."""
    product: str = ""
    """Of a bias: the value of its scale in the training graph."""


@attrs.frozen(eq=False)
class Student:
    """A training graph, beside the quantized model it was made from."""

    quantized: ir.Model
    model: ir.Model
    weights: tuple[Weight, ...]
    logarithms: Mapping[str, str]
    """Initializer of the logarithm in the training graph, by that of the scale in the quantized model."""
    scales: Mapping[str, str]
    """Value of the scale in the training graph, likewise."""

    @classmethod
    def of(cls, quantized: ir.Model, original: ir.Model, bits: int) -> Student:
        """The training graph; its weights begin where those of the original model are."""
        return _Builder(clone(quantized), original, bits).build(quantized)

    def original(self, model: ir.Model, values: Mapping[str, Array]) -> ir.Model:
        """The original model with the real weights and biases as they were trained."""
        changed = clone(model)
        for weight in self.weights:
            if weight.source and weight.real in values:
                held = changed.graph.initializers[weight.source]
                held.const_value = ir.tensor(np.array(values[weight.real]), name=weight.source)
        return changed

    def finished(self, values: Mapping[str, Array], feeds: Mapping[str, Array]) -> ir.Model:
        """The quantized model with what the training graph computes for these values of its initializers.

        Args:
            values: of what was trained, by name in the training graph.
            feeds: any sample: what is asked for does not depend on it.
        """
        products = [weight.product for weight in self.weights if weight.product]
        plan = compile_plan(self.model, [*(w.integers for w in self.weights), *products, *self.scales.values()])
        found = plan.run({**feeds, **{name: value for name, value in values.items() if name in plan.initializers}})
        done = clone(self.quantized)
        nodes = {node.name: node for node in done.graph}
        for name, scale in self.scales.items():
            done.graph.initializers[name].const_value = ir.tensor(found[scale], name=name)
        for weight in self.weights:
            node = nodes[weight.dequantize]
            _set_integers(done, node, found[weight.integers])
            if weight.product:
                replace_input(node, 1, add_initializer(done, f"{weight.real}/scale", found[weight.product]))
        for name, value in values.items():
            if name in done.graph.initializers:
                done.graph.initializers[name].const_value = ir.tensor(np.array(value), name=name)
        return done


def _set_integers(model: ir.Model, node: ir.Node, integers: Array) -> None:
    """Give a DequantizeLinear other integers; narrow ones are widened before it, to the type of its zero point.

    A runtime widens constants when it loads them, and then has the kernels of the wider type.
    """
    old, zero_point = node.inputs[0], _zero_point(node)
    assert old is not None
    stored = add_initializer(model, f"{old.name}/trained", integers)
    held = None if zero_point is None else constant(zero_point)
    if held is None or held.dtype == integers.dtype:
        replace_input(node, 0, stored)
        return
    wide = ir.node("Cast", [stored], attributes={"to": ir.DataType.from_numpy(held.dtype)})
    wide.name = fresh_name(model, f"{node.name}/widened")
    wide.outputs[0].name = fresh_name(model, f"{node.name}/wide")
    model.graph.insert_before(node, wide)
    replace_input(node, 0, wide.outputs[0])


@attrs.define(eq=False)
class _Builder:
    model: ir.Model
    original: ir.Model
    bits: int
    weights: list[Weight] = attrs.field(factory=list)
    logarithms: dict[str, str] = attrs.field(factory=dict)
    scales: dict[str, ir.Value] = attrs.field(factory=dict)

    def build(self, quantized: ir.Model) -> Student:
        held = {node: _dtype(node) for node in self.model.graph if _holds_integers(node)}
        for node in (node for node, dtype in held.items() if dtype == np.int8):
            self._weight(node)
        for node in list(self.model.graph):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and held.get(node) != np.int32:
                self._scale(node)
        for node in (node for node, dtype in held.items() if dtype == np.int32):
            self._bias(node)
        self.model.graph.sort()
        scales = {name: str(value.name) for name, value in self.scales.items()}
        return Student(quantized, self.model, tuple(self.weights), self.logarithms, scales)

    def _weight(self, node: ir.Node) -> None:
        """A real weight that is rounded before the node reads it."""
        if self.bits == 4 and len(node.inputs) > 2:
            zero_point = constant(node.inputs[2])
            assert zero_point is not None
            replace_input(node, 2, add_initializer(self.model, f"{node.name}/int4", zero_point.astype(INT4)))
        self._rounded(node, weight_of)

    def _bias(self, node: ir.Node) -> None:
        """A real bias that is rounded to the product of the scales of its layer."""
        (layer,) = consumers(node.outputs[0])
        read = [value.producer() for value in layer.inputs[:2] if value is not None]
        product = self._append("Mul", [each.inputs[1] for each in read if each is not None], f"{node.name}/product")
        self._rounded(node, lambda layer: layer.inputs[2], product)

    def _rounded(self, node: ir.Node, pick: Pick, product: ir.Value | None = None) -> None:
        """Real numbers that become integers before the node reads them, and that begin as `pick` finds them."""
        stored, tolerance = _stands_for(node)
        source = self._source(node, pick, stored, tolerance)
        begin = stored if source is None else constant(source)
        assert begin is not None
        if product is not None:
            replace_input(node, 1, product)
        real = add_initializer(self.model, f"{node.name}/real", begin.astype(np.float32))
        kept = {key: attribute(node, key) for key in node.attributes}
        zero_point = _zero_point(node) or self._zeros(node)
        rounded = self._append("QuantizeLinear", [real, node.inputs[1], zero_point], f"{node.name}/rounded", **kept)
        replace_input(node, 0, rounded)
        names = [str(value.name) if value is not None else "" for value in (real, rounded, source, product)]
        self.weights.append(Weight(str(node.name), *names))

    def _zeros(self, node: ir.Node) -> ir.Value:
        """What the absent zero point of a DequantizeLinear stands for."""
        integers = constant(node.inputs[0])
        assert integers is not None
        return add_initializer(self.model, f"{node.name}/zero_point", np.zeros((), integers.dtype))

    def _source(self, node: ir.Node, pick: Pick, stored: Array, tolerance: float) -> ir.Value | None:
        """What the original layer holds there; None where the quantizer rearranged it."""
        names = {layer.name for layer in consumers(node.outputs[0])}
        layer = next((layer for layer in self.original.graph if layer.name in names), None)
        value = None if layer is None else pick(layer)
        known = None if value is None or not value.is_initializer() else constant(value)
        close = known is not None and known.shape == stored.shape and np.abs(known - stored).max() <= tolerance
        return value if close else None

    def _append(self, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes)
        node.name = fresh_name(self.model, name)
        node.outputs[0].name = fresh_name(self.model, f"{name}/value")
        self.model.graph.append(node)
        return node.outputs[0]

    def _scale(self, node: ir.Node) -> None:
        value = node.inputs[1]
        assert value is not None
        name = str(value.name)
        if name not in self.scales:
            held = constant(value)
            assert held is not None
            logarithm = add_initializer(self.model, f"{name}/logarithm", np.log(held))
            self.scales[name] = self._append("Exp", [logarithm], f"{name}/learned")
            self.logarithms[name] = str(logarithm.name)
        replace_input(node, 1, self.scales[name])


def _stands_for(node: ir.Node) -> tuple[Array, float]:
    """The real numbers of a DequantizeLinear of constants, and its largest step."""
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert integers is not None
    assert scale is not None
    axis = [1] * integers.ndim
    if scale.ndim:
        axis[attribute(node, "axis", 1)] = -1
    return integers.astype(np.float32) * scale.reshape(axis), float(scale.max())


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _holds_integers(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _dtype(node: ir.Node) -> Any:
    held = constant(node.inputs[0])
    return None if held is None else held.dtype


def trainable(student: Student, *, scales: bool) -> Iterator[str]:
    """Initializers of the training graph that do not look like parameters but are."""
    yield from (weight.real for weight in student.weights)
    if scales:
        yield from student.logarithms.values()
