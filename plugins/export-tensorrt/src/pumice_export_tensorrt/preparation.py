"""What TensorRT asks of a quantized model, and what can be changed without changing a number.

With x = s (q - z), TensorRT knows 8-bit signed q and z = 0 alone. Activations have one s; the s of a weight may differ
by output channel. Biases are real numbers: one stored as int32 with a scale is replaced by the product, which is the
same. Everything else has to be quantized so from the start, and is refused here with the node that is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from pumice.errors import ModelError
from pumice.model import add_initializer, clone, constant, is_constant, nodes, remove_unread, replace_value

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def is_quantized(model: ir.Model) -> bool:
    return any(node.op_type in QUANTIZERS for node in nodes(model))


def prepared(model: ir.Model) -> ir.Model:
    """The model with real biases; left unchanged itself.

    Raises:
        ModelError: it is quantized in a way that TensorRT does not know.
    """
    found = clone(model)
    for node in list(nodes(found)):
        if _is_bias(node):
            stored, scale = constant(node.inputs[0]), constant(node.inputs[1])
            assert stored is not None
            assert scale is not None
            replace_value(node.outputs[0], add_initializer(found, f"{node.name}_real", stored * scale))
    remove_unread(found)
    problems = [f"{node.op_type} '{node.name}' {problem}" for node in nodes(found) for problem in _problems(node)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"TensorRT cannot run these integers: {problems[0]}{more}; quantize with target='tensorrt'")
    return found


def _is_bias(node: ir.Node) -> bool:
    """Whether a constant of 32 bits is made real here, with a zero point of zero."""
    stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if stored is None or stored.dtype != ir.DataType.INT32 or not all(map(is_constant, node.inputs[:2])):
        return False
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero is None or not zero.any()


def _problems(node: ir.Node) -> Iterator[str]:
    if node.op_type not in QUANTIZERS:
        return
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    quantized = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        yield "computes its scale or zero point while it runs"
        return
    kind = zero.dtype if zero is not None else None if quantized is None or quantized.dtype is None else quantized.dtype
    if _name(kind) != "int8":
        yield f"makes {_name(kind)}, not int8"
    if zero is not None and zero.astype(np.int64).any():
        yield "has a zero point other than 0"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "has a scale that is not a positive number"
    if scale.size > 1 and not is_constant(node.inputs[0]):
        yield "has several scales for an activation"


def _name(kind: object) -> str:
    """Of a NumPy or an ONNX type; QuantizeLinear makes uint8 where nothing is said."""
    return kind.name.lower() if isinstance(kind, np.dtype | ir.DataType) else "uint8"
