"""Two strategies to copy: channels scored by the size of their weights, and weights stored as int8.

`template-magnitude` scores channel c by ||w[c]||, the norm of its weights (Li et al., ICLR 2017).

`template-int8-weights` stores a weight w as integers q with one scale a channel, which the runtime undoes before use:

    scale[c] = max |w[c]| / 127        q = round(w / scale)        w' = DequantizeLinear(q, scale)

The file becomes four times smaller and nothing runs faster: activations stay in floating point, so no calibration data
is needed. Heavy libraries are imported inside the methods, so that importing the plugin costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Choice, ImportanceScorer, Int, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pumice.quantize.context import QuantizeContext


@attrs.frozen(kw_only=True)
class Magnitude(ImportanceScorer):
    """A channel matters as much as its weights are large."""

    name = "template-magnitude"
    norm: str = knob("l1", Choice("l1", "l2"), help="how the weights of a channel are summed")

    def score(self, group: Any, context: Any) -> NDArray[np.float32]:
        filters = context.weights(group)  # (channels, weights per channel)
        return np.asarray(np.linalg.norm(filters, ord={"l1": 1, "l2": 2}[self.norm], axis=1))


@attrs.frozen(kw_only=True)
class Int8Weights(Quantizer):
    """Weights stored as int8, one scale a channel; everything is computed in floating point."""

    name = "template-int8-weights"
    smallest: int = knob(64, Int(1, 1_000_000), help="weights with fewer values stay in floating point")

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.model import clone, constant, nodes, replace_input, weight_of

        quantized = clone(model)
        dequantized: dict[ir.Value, ir.Value] = {}  # layers that share a weight share its integers
        for node in list(nodes(quantized)):
            ledger = context.ledger
            weight = weight_of(node)
            array = constant(weight)
            if weight is None or array is None or array.dtype != np.float32:
                ledger.skipped("quantize", str(node.name), node.op_type, "it has no floating-point weight")
            elif reason := context.excluded(node):  # by the user, or by the guard that gives back what costs too much
                ledger.declined("quantize", str(node.name), node.op_type, reason)
            elif array.size < self.smallest:
                reason = f"its weight has {array.size} values, fewer than {self.smallest}"
                ledger.declined("quantize", str(node.name), node.op_type, reason)
            else:
                if weight not in dequantized:
                    dequantized[weight] = _dequantize(quantized, node, weight, array)
                replace_input(node, node.inputs.index(weight), dequantized[weight])
                ledger.applied("quantize", str(node.name), node.op_type, "its weight is stored as int8")
        return quantized  # the floating-point weights that nothing reads any more are dropped after the step


def _dequantize(model: ir.Model, node: ir.Node, weight: ir.Value, array: NDArray[Any]) -> ir.Value:
    """Store the weight of `node` as integers; the value is the weight that they stand for."""
    import onnx_ir as ir

    from pumice.model import add_initializer, fresh_name

    axis = _output_axis(node, array.ndim)
    scale = np.abs(array).max(axis=tuple(a for a in range(array.ndim) if a != axis)) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))  # a channel of zeros
    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
    integers = np.rint(array / scale.reshape(shape)).astype(np.int8)
    made = ir.node(
        "DequantizeLinear",
        [
            add_initializer(model, f"{weight.name}_int8", integers),
            add_initializer(model, f"{weight.name}_scale", scale.astype(np.float32)),
        ],
        {"axis": axis},
        name=fresh_name(model, f"{weight.name}_dequantize"),
    )
    value = made.outputs[0]
    value.name = fresh_name(model, f"{weight.name}_dequantized")
    value.type, value.shape = weight.type, weight.shape
    if node.graph is not None:
        node.graph.insert_before(node, made)
    return value


def _output_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight that belongs to the output channels."""
    from pumice.model import attribute

    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if node.op_type == "MatMul" else 0


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Magnitude


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Int8Weights
