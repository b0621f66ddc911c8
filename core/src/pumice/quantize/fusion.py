"""Fusion: integer operators take the place of DequantizeLinear, operator, QuantizeLinear.

A quantized model says what is computed with real numbers, s_y q_y = f(s_x (q_x - z_x), s_w q_w). A runtime computes it
with integers alone, and its rounding is that of the integer operator, not of the real numbers around it:

    DQ(x), DQ(w), DQ(b) -> Conv -> Q                QLinearConv: y = sat(rint((sum q_x q_w + b) (s_x s_w / s_y)) + z_y)
    DQ(a), DQ(b) -> MatMul [-> Q]                   QLinearMatMul, or MatMulIntegerToFloat where the result stays real
    DQ(a), DQ(b), DQ(c) -> Gemm [-> Q]              QGemm
    DQ(a), DQ(b) -> Add | Mul -> Q                  QLinearAdd, QLinearMul
    DQ(x) -> GlobalAveragePool | AveragePool -> Q   QLinearGlobalAveragePool, QLinearAveragePool
    DQ(x), ... -> Concat -> Q                       QLinearConcat
    DQ(x) -> Transpose | MaxPool | ... -> Q         itself, on integers, if both sides share scale and zero point

A Relu before Q vanishes if Q's lowest integer stands for zero. The conditions are those under which ONNX Runtime fuses,
so that the fused model computes the integers which ONNX Runtime computes for the model with Q and DQ. Integer tensors
keep their names. Everything else stays as it is, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType

import attrs
import numpy as np
import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.model import add_initializer, attribute, clone, constant, consumers, is_constant, replace_value

STEP = "export"
MS = "com.microsoft"
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
NARROW = frozenset(kind.numpy() for kind in (ir.DataType.INT4, ir.DataType.UINT4))
MOVES = frozenset(
    "Expand Flatten Gather GatherElements MaxPool Reshape Slice Squeeze Tile Transpose Unsqueeze Split".split()
)
"""Operators that move or select values: on integers they do the same."""


@attrs.frozen(eq=False)
class Quantized:
    """Integers, and the scale and zero point that give them meaning."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    axis: int | None
    """Axis of a scale with several values; None for one scale."""

    @classmethod
    def of(cls, node: ir.Node, integers: ir.Value) -> Quantized | None:
        """What a QuantizeLinear or DequantizeLinear says about its integers; None if its scale is not constant."""
        scale = node.inputs[1]
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        held = constant(scale)
        if scale is None or held is None or attribute(node, "block_size", 0):
            return None
        if zero_point is not None and not is_constant(zero_point):
            return None
        return cls(integers, scale, zero_point, None if held.size == 1 else attribute(node, "axis", 1))

    @property
    def zero(self) -> int | None:
        """The zero point; None if several channels have different ones."""
        held = constant(self.zero_point)
        if held is None:
            return 0
        return int(held.flat[0]) if np.all(held == held.flat[0]) else None

    def shares_parameters(self, other: Quantized) -> bool:
        one, two = constant(self.scale), constant(other.scale)
        same_scale = one is not None and two is not None and np.array_equal(one.reshape(-1), two.reshape(-1))
        return same_scale and self.zero == other.zero and self.integers.dtype == other.integers.dtype


@attrs.frozen(eq=False)
class Unit:
    """A node between integers: what stands before its DequantizeLinear and after its QuantizeLinear."""

    model: ir.Model
    node: ir.Node
    inputs: tuple[Quantized | None, ...]
    """None where an input is not dequantized."""
    outputs: tuple[Quantized, ...]
    """Empty where the result stays a real number."""
    refusal: str | None
    """Why the result cannot be integers, if so."""

    def arguments(self, index: int) -> list[ir.Value]:
        """Integers, scale and zero point of an input."""
        found = self.inputs[index]
        assert found is not None
        return [found.integers, *self.parameters(found)]

    def parameters(self, quantized: Quantized) -> list[ir.Value]:
        zero_point = quantized.zero_point
        if zero_point is None:
            assert quantized.integers.dtype is not None
            zero = np.zeros((), quantized.integers.dtype.numpy())
            zero_point = add_initializer(self.model, f"{quantized.scale.name}/zero_point", zero)
        return [quantized.scale, zero_point]

    def make(self, op_type: str, inputs: Sequence[ir.Value | None], domain: str = "", **more: int) -> ir.Node:
        """The node that takes this one's place, with its attributes."""
        attributes = [*self.node.attributes.values(), *(ir.AttrInt64(key, value) for key, value in more.items())]
        return ir.Node(domain, op_type, inputs, attributes, num_outputs=len(self.node.outputs), name=self.node.name)


Rule = Callable[[Unit], ir.Node | str]
"""The integer operator for a unit, or the reason why there is none."""


def fused(model: ir.Model, ledger: Ledger | None = None) -> ir.Model:
    """The model with integer operators wherever ONNX Runtime uses them; the model itself is left unchanged.

    Args:
        model: a model with Q and DQ.
        ledger: gets a line for every node: `applied`, or `declined` with the reason why it stays as it is, or
            `skipped` if nothing around it is quantized.
    """
    result, ledger = clone(model), ledger if ledger is not None else Ledger()
    _widen_constants(result)
    for node in list(result.graph):
        if node.op_type in QUANTIZING:
            continue
        unit = _unit(result, node)
        name, kind = str(node.name or node.outputs[0].name), node.op_type
        nothing = _nothing_to_do(unit)
        if nothing:
            ledger.skipped(STEP, name, kind, nothing)
            continue
        if kind == "Relu" and _has_vanished(node):
            ledger.applied(STEP, name, kind, "vanished into the range of the integers before it")
            continue
        replacement = _replacement(unit)
        if isinstance(replacement, str):
            ledger.declined(STEP, name, kind, replacement)
            continue
        _put(unit, replacement)
        ledger.applied(STEP, name, kind, f"computes with integers, as {replacement.op_type}")
    _remove_unread(result)
    if any(node.domain == MS for node in result.graph):
        result.opset_imports.setdefault(MS, 1)
    return result


def _widen_constants(model: ir.Model) -> None:
    """Integers of fewer than eight bits that a Cast widens, as a runtime does when it loads the model."""
    for node in list(model.graph):
        if node.op_type != "Cast" or node.outputs[0].is_graph_output():
            continue
        value, wide = constant(node.inputs[0]), ir.DataType(attribute(node, "to"))
        if value is not None and value.dtype in NARROW and wide in BYTES:
            stored = add_initializer(model, f"{node.outputs[0].name}/constant", value.astype(wide.numpy()))
            replace_value(node.outputs[0], stored)
            model.graph.remove(node, safe=True)


def _nothing_to_do(unit: Unit) -> str | None:
    kind = unit.node.op_type
    if kind.startswith("QLinear") or kind in {"QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}:
        return "it is an integer operator already"
    if unit.node.domain not in ("", "ai.onnx"):
        return f"it is an operator of {unit.node.domain}"
    return None if any(unit.inputs) or unit.outputs else "nothing around it is quantized"


# --- what surrounds a node --------------------------------------------------------------------------------------------


def _unit(model: ir.Model, node: ir.Node) -> Unit:
    inputs = tuple(None if value is None else _before(value) for value in node.inputs)
    after = [_after(value) for value in node.outputs]
    outputs = tuple(found for found in after if isinstance(found, Quantized))
    refusal = next((found for found in after if isinstance(found, str)), None)
    return Unit(model, node, inputs, () if refusal else outputs, refusal)


def _before(value: ir.Value) -> Quantized | None:
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return None
    return Quantized.of(producer, producer.inputs[0])


def _after(value: ir.Value) -> Quantized | str:
    readers = consumers(value)
    if value.is_graph_output():
        return f"its result '{value.name}' leaves the model as a real number"
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return _after_relu(readers[0].outputs[0])
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        kinds = ", ".join(sorted({reader.op_type for reader in readers}))
        return f"its result is read as a real number ({kinds or 'by nobody'})"
    found = Quantized.of(readers[0], readers[0].outputs[0])
    if found is None or found.axis is not None:
        return "its result is quantized with several scales, or with one that is not constant"
    return found


def _after_relu(value: ir.Value) -> Quantized | str:
    found = _after(value)
    if isinstance(found, str):
        return found
    lowest = 0 if found.integers.dtype == ir.DataType.UINT8 else -128
    return found if found.zero == lowest else "its Relu does not end where the integers do"


def _has_vanished(relu: ir.Node) -> bool:
    """Whether the layer before it writes the integers already, so that nobody reads its own."""
    after = [reader.outputs[0] for reader in consumers(relu.outputs[0]) if reader.op_type == "QuantizeLinear"]
    return bool(after) and not any(value.uses() or value.is_graph_output() for value in after)


def _replacement(unit: Unit) -> ir.Node | str:
    rule = RULES.get(unit.node.op_type)
    if rule is None:
        return f"there is no integer operator for {unit.node.op_type}"
    data = unit.inputs[0]
    if data is None:
        return "its input is a real number"
    if data.axis is not None:
        return "its input has several scales"
    if any(found.integers.dtype not in BYTES for found in (data, *unit.outputs)):
        return "only 8-bit integers have integer operators"
    if any(found.integers.dtype != data.integers.dtype for found in unit.outputs):
        return "its input and its result have different integer types"
    return rule(unit)


# --- one rule an operator ---------------------------------------------------------------------------------------------


def _conv(unit: Unit) -> ir.Node | str:
    reason = unit.refusal or _weights_refusal(unit, axis=0) or _bias_refusal(unit)
    if reason:
        return reason
    bias = _bias(unit)
    inputs = [*unit.arguments(0), *unit.arguments(1), *unit.parameters(unit.outputs[0])]
    return unit.make("QLinearConv", inputs if bias is None else [*inputs, bias])


def _matmul(unit: Unit) -> ir.Node | str:
    weight = unit.inputs[1]
    rank = 2 if weight is None or weight.integers.shape is None else len(weight.integers.shape)
    reason = _weights_refusal(unit, axis=rank - 1)
    if reason:
        return reason
    (a, a_scale, a_zero), (b, b_scale, b_zero) = unit.arguments(0), unit.arguments(1)
    if unit.outputs:
        results = unit.parameters(unit.outputs[0])
        return unit.make("QLinearMatMul", [a, a_scale, a_zero, b, b_scale, b_zero, *results])
    return unit.make("MatMulIntegerToFloat", [a, b, a_scale, b_scale, a_zero, b_zero], MS)


def _gemm(unit: Unit) -> ir.Node | str:
    axis = 0 if attribute(unit.node, "transB", 0) else 1
    reason = _weights_refusal(unit, axis=axis) or _bias_refusal(unit)
    if reason:
        return reason
    if attribute(unit.node, "beta", 1.0) != 1.0:
        return "its beta is not 1"
    inputs: list[ir.Value | None] = [*unit.arguments(0), *unit.arguments(1), _bias(unit)]
    made = unit.make("QGemm", [*inputs, *(unit.parameters(unit.outputs[0]) if unit.outputs else [])], MS)
    made.attributes.pop("beta", None)
    return made


def _binary(unit: Unit) -> ir.Node | str:
    first, second = unit.inputs
    if unit.refusal:
        return unit.refusal
    if first is None or second is None or second.axis is not None:
        return "one of its inputs is a real number, or has several scales"
    if first.integers.dtype != second.integers.dtype:
        return "its inputs have different integer types"
    inputs = [*unit.arguments(0), *unit.arguments(1), *unit.parameters(unit.outputs[0])]
    return unit.make(f"QLinear{unit.node.op_type}", inputs, MS)


def _pool(unit: Unit) -> ir.Node | str:
    if unit.refusal:
        return unit.refusal
    inputs = [*unit.arguments(0), *unit.parameters(unit.outputs[0])]
    return unit.make(f"QLinear{unit.node.op_type}", inputs, MS, channels_last=0)


def _concat(unit: Unit) -> ir.Node | str:
    if unit.refusal:
        return unit.refusal
    result = unit.outputs[0]
    if any(found is None or found.axis is not None for found in unit.inputs):
        return "one of its inputs is a real number, or has several scales"
    if any(found.integers.dtype != result.integers.dtype for found in unit.inputs if found):
        return "its inputs have different integer types"
    if all(found.shares_parameters(result) for found in unit.inputs if found):
        return unit.make("Concat", [found.integers for found in unit.inputs if found])
    inputs = [value for index in range(len(unit.inputs)) for value in unit.arguments(index)]
    return unit.make("QLinearConcat", [*unit.parameters(result), *inputs], MS)


def _move(unit: Unit) -> ir.Node | str:
    source = unit.inputs[0]
    if unit.refusal:
        return unit.refusal
    if source is None or not all(found.shares_parameters(source) for found in unit.outputs):
        return "its input and its result have different scales or zero points"
    return unit.make(unit.node.op_type, [source.integers, *unit.node.inputs[1:]])


def _weights_refusal(unit: Unit, axis: int) -> str | None:
    weights = unit.inputs[1]
    if weights is None:
        return "its weights are real numbers"
    if weights.integers.dtype not in BYTES:
        return "only 8-bit weights have integer operators"
    if weights.zero is None:
        return "its weights have several zero points"
    if weights.axis is not None:
        rank = 1 if weights.integers.shape is None else len(weights.integers.shape)
        if weights.axis % rank != axis:
            return "the scales of its weights do not belong to its output channels"
    if unit.inputs[0] is not None and unit.inputs[0].integers.dtype == ir.DataType.INT8 != weights.integers.dtype:
        return "signed data cannot meet unsigned weights"
    return None


def _bias_refusal(unit: Unit) -> str | None:
    """The integer operator adds the bias to its sums: it must be in units of s_x s_w."""
    if len(unit.inputs) < 3 or unit.node.inputs[2] is None:
        return None
    data, weights, bias = unit.inputs[:3]
    if bias is None or bias.integers.dtype != ir.DataType.INT32 or bias.zero != 0:
        return "its bias is not a 32-bit integer"
    assert data is not None
    assert weights is not None
    scales = [np.asarray(constant(found.scale), np.float64) for found in (data, weights, bias)]
    if not np.allclose(scales[0].reshape(-1) * scales[1].reshape(-1), scales[2].reshape(-1), rtol=1e-5, atol=0.0):
        return "its bias has another scale than its products"
    return None


def _bias(unit: Unit) -> ir.Value | None:
    found = unit.inputs[2] if len(unit.inputs) > 2 else None
    return None if found is None else found.integers


RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {
        "Conv": _conv, "MatMul": _matmul, "Gemm": _gemm, "Add": _binary, "Mul": _binary,
        "GlobalAveragePool": _pool, "AveragePool": _pool, "Concat": _concat, **dict.fromkeys(sorted(MOVES), _move),
    }
)  # fmt: skip


# --- putting it in place ----------------------------------------------------------------------------------------------


def _put(unit: Unit, replacement: ir.Node) -> None:
    """The integers (or the real result) come from the replacement, under the name they had."""
    graph = unit.model.graph
    graph.insert_before(unit.node, replacement)
    old = [found.integers for found in unit.outputs] or list(unit.node.outputs)
    for given, made in zip(old, replacement.outputs, strict=True):
        made.type, made.shape, name = given.type, given.shape, given.name
        given.name = None
        given.replace_all_uses_with(made, replace_graph_outputs=True)
        made.name = name


def _remove_unread(model: ir.Model) -> None:
    """Nodes and initializers that nobody reads any more."""
    for node in reversed(model.graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in list(_unread_initializers(model)):
        model.graph.initializers.pop(name)


def _unread_initializers(model: ir.Model) -> Iterator[str]:
    for name, value in model.graph.initializers.items():
        if not value.uses() and not value.is_graph_output() and value not in model.graph.inputs:
            yield name
