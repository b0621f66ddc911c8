"""Folding per-channel arithmetic into the layer before it.

A layer y = W x + b (`Conv`, `ConvTranspose`, `Gemm`, `MatMul`) followed by z[c] = s[c] y[c] + t[c] along its output
channels is the layer W' = s W, b' = s b + t. The following node may be a `BatchNormalization` in inference mode
(s = gamma / sqrt(variance + epsilon), t = beta - s mean) or an `Add`, `Sub`, `Mul` or `Div` by a constant that varies
along the channel axis only. One rule therefore serves batch normalisation, separate biases and decomposed
normalisations alike; arithmetic is in float64 and rounded once to the type of the weight.

A `MatMul` has no bias: with t = 0 only its matrix changes; otherwise it becomes a `Gemm`, if its input is a matrix.
Padding does not matter, since s and t act after the layer.

What no layer before it takes, convolutions that read it may: W (s x + t) + b = (W s) x + (b + W t), along their input
channels. There padding matters: t, unlike s, would be padded with, so convolutions that pad take only products. What
runtimes know as one operator stays whole: the factor at the end of a GELU, the gain of a decomposed normalisation.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.ledger import Ledger
from pumice.model.graph import (
    add_initializer,
    attribute,
    constant,
    consumers,
    is_constant,
    replace_input,
    replace_value,
)

Array = NDArray[Any]


@attrs.frozen(eq=False)
class Affine:
    """z[c] = scale[c] * y[c] + shift[c]; both of shape (channels,), float64."""

    scale: Array
    shift: Array


def fold_affines(model: ir.Model, ledger: Ledger, step: str = "simplify") -> bool:
    """Fold every per-channel affine node into the layer before it, else into the convolutions after it.

    Each fold, and each refusal by the layer before, is a line in the ledger.
    """
    changed = False
    for layer in tuple(model.graph):
        if layer.domain == "" and layer.op_type in _CHANNEL_AXIS and _weight(layer) is not None:
            while _fold_next(model, layer, ledger, step):
                changed = True
    for node in reversed(tuple(model.graph)):
        changed |= _fold_ahead(model, node, ledger, step)
    return changed


_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


def _fold_next(model: ir.Model, layer: ir.Node, ledger: Ledger, step: str) -> bool:
    output = layer.outputs[0]
    readers = consumers(output)
    if len(readers) != 1 or len(output.uses()) != 1 or output.is_graph_output() or readers[0].graph is not layer.graph:
        return False
    follower = readers[0]
    channels, rank = _channels(layer), _rank(layer)
    affine = _affine_of(follower, output, channels, rank, _CHANNEL_AXIS[layer.op_type])
    if affine is None or (layer.op_type == "MatMul" and rank != 2 and affine.shift.any()):
        return False  # a linear layer on more than two dimensions: its Add is the only place for its bias
    where = f"{layer.op_type} '{layer.name}'"
    reason = _obstacle(layer, affine)
    folded = None if reason else _folded(layer, affine)
    if folded is None:
        refusal = f"not folded into {where}: {reason or 'the result leaves the range of its type'}"
        if all((line.node, line.reason) != (follower.name, refusal) for line in ledger.of(step, "declined")):
            ledger.declined(step, follower.name or "", follower.op_type, refusal)
        return False
    weight, bias = folded
    _set_input(model, layer, 1, weight)
    if bias is not None:
        _set_input(model, layer, 2, bias)
        layer.op_type = "Gemm" if layer.op_type == "MatMul" else layer.op_type
        layer.attributes.pop("beta", None)
    replace_value(follower.outputs[0], output)
    output.shape = output.shape or follower.outputs[0].shape
    model.graph.remove(follower, safe=True)
    ledger.applied(step, follower.name or "", follower.op_type, f"folded into {where}")
    return True


def _fold_ahead(model: ir.Model, node: ir.Node, ledger: Ledger, step: str) -> bool:
    """Fold an affine node into the convolutions that read it, if all can take it; else a product before it."""
    source, layers = _varying_input(node), _convolutions(node.outputs[0])
    if source is None or not layers or closes_a_pattern(source):
        return False
    affine = _affine_of(node, source, _inputs_of(layers[0]), _rank(layers[0]), 1)
    if affine is None:
        return False
    if affine.shift.any() and any(_pads(layer) for layer in layers):
        gone = _fold_product_before(model, node, affine, layers)
    else:
        gone = node if _premultiply(model, layers, affine) else None
        if gone is not None:
            node.outputs[0].replace_all_uses_with(source)
    if gone is None:
        return False
    model.graph.remove(gone, safe=True)
    names = ", ".join(f"'{layer.name}'" for layer in layers)
    ledger.applied(step, gone.name or "", gone.op_type, f"folded into the convolutions that read it: {names}")
    return True


def _fold_product_before(model: ir.Model, node: ir.Node, affine: Affine, layers: tuple[ir.Node, ...]) -> ir.Node | None:
    """The product before a sum goes into the convolutions behind it: s x + t = s (x + t / s).

    Returns the product, which nobody reads any more, or None if there is none.
    """
    source = _varying_input(node)
    product = None if source is None else source.producer()
    factor = None if product is None else _varying_input(product)
    if source is None or product is None or factor is None or len(source.uses()) > 1:
        return None
    channels, rank = _inputs_of(layers[0]), _rank(layers[0])
    before = _affine_of(product, factor, channels, rank, 1)
    if before is None or before.shift.any() or not before.scale.all() or (affine.scale != 1).any():
        return None
    if not _premultiply(model, layers, Affine(before.scale, np.zeros(channels))):
        return None
    shift = (affine.shift / before.scale).astype(constant(layers[0].inputs[1]).dtype)  # type: ignore[union-attr]
    operand = shift[:1] if (shift == shift[0]).all() else shift.reshape(-1, *(1,) * ((rank or 2) - 2))
    node.op_type = "Add"
    replace_input(node, 0, factor)
    replace_input(node, 1, add_initializer(model, f"{node.name}/shift", operand))
    return product


def _convolutions(value: ir.Value) -> tuple[ir.Node, ...]:
    """The readers of a value, if all are convolutions with weights of their own that may change."""
    readers = consumers(value)
    if value.is_graph_output() or any(reader.graph is not value.producer().graph for reader in readers):  # type: ignore[union-attr]
        return ()
    for reader in readers:
        weight = reader.inputs[1] if reader.op_type == "Conv" and reader.domain == "" else None
        if weight is None or reader.inputs[0] is not value or len(weight.uses()) > 1 or _weight(reader) is None:
            return ()
    return readers


def _premultiply(model: ir.Model, layers: tuple[ir.Node, ...], affine: Affine) -> bool:
    """Let convolutions do the affine map of their input; False if one of them leaves the range of its type."""
    folds = [_folded_ahead(layer, affine) for layer in layers]
    if any(folded is None for folded in folds):
        return False
    for layer, (weight, bias) in zip(layers, folds, strict=True):  # type: ignore[misc]
        _set_input(model, layer, 1, weight)
        if bias is not None:
            _set_input(model, layer, 2, bias)
    return True


def _varying_input(node: ir.Node) -> ir.Value | None:
    """The one input of a node of arithmetic that is not constant."""
    if node.domain != "" or node.op_type not in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
        return None
    varying = [value for value in node.inputs if not is_constant(value)]
    return varying[0] if len(varying) == 1 else None


def closes_a_pattern(value: ir.Value) -> bool:
    """Whether a value is, up to constants, a product or a quotient of two others, as GELU and normalisations are."""
    node = value.producer()
    while node is not None and (source := _varying_input(node)) is not None:
        node = source.producer()
    return node is not None and node.op_type in ("Mul", "Div")


def _pads(layer: ir.Node) -> bool:
    return attribute(layer, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(attribute(layer, "pads", ()))


def _weight(layer: ir.Node) -> Array | None:
    """The constant floating-point weight (input 1), if the layer has one and its bias is constant or absent."""
    if len(layer.inputs) < 2 or layer.inputs[1] is None or not layer.inputs[1].is_initializer():
        return None
    dtype = layer.inputs[1].dtype
    if dtype is None or not dtype.is_floating_point() or dtype.bitwidth < 16:
        return None
    if len(layer.inputs) > 2 and layer.inputs[2] is not None and not is_constant(layer.inputs[2]):
        return None
    weight = constant(layer.inputs[1])
    return None if weight is None or (layer.op_type == "MatMul" and weight.ndim != 2) else weight


def _channels(layer: ir.Node) -> int:
    shape: tuple[int, ...] = layer.inputs[1].shape.numpy()  # type: ignore[union-attr]
    if layer.op_type == "Conv":
        return shape[0]
    if layer.op_type == "ConvTranspose":
        return shape[1] * int(attribute(layer, "group", 1))
    return shape[0] if attribute(layer, "transB", 0) else shape[1]


def _inputs_of(convolution: ir.Node) -> int:
    """Number of its input channels."""
    shape: tuple[int, ...] = convolution.inputs[1].shape.numpy()  # type: ignore[union-attr]
    return shape[1] * int(attribute(convolution, "group", 1))


def _rank(layer: ir.Node) -> int | None:
    """The rank of the layer's output, if known."""
    if layer.op_type == "Gemm":
        return 2
    if layer.op_type == "MatMul":
        source = layer.inputs[0]
        return source.shape.rank() if source is not None and source.shape is not None else None
    return layer.inputs[1].shape.rank()  # type: ignore[union-attr]


def _affine_of(node: ir.Node, source: ir.Value, channels: int, rank: int | None, axis: int) -> Affine | None:
    """The affine map that `node` applies to `source` along the channel axis, or None if it is not one."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node, source) if axis == 1 or rank == 2 else None
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.inputs[0] is source
    operand = _along_channels(constant(node.inputs[1 if first else 0]), channels, rank, axis)
    if operand is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    match node.op_type, first:
        case "Add", _:
            return Affine(one, operand)
        case "Mul", _:
            return Affine(operand, zero)
        case "Sub", True:
            return Affine(one, -operand)
        case "Sub", False:
            return Affine(-one, operand)
        case "Div", True if operand.all():
            return Affine(1.0 / operand, zero)
    return None


def _batch_normalization(node: ir.Node, source: ir.Value) -> Affine | None:
    parameters = [constant(value) for value in node.inputs[1:5]]
    training = attribute(node, "training_mode", 0) or len([o for o in node.outputs if o.name]) > 1
    if node.inputs[0] is not source or training or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _along_channels(operand: Array | None, channels: int, rank: int | None, axis: int) -> Array | None:
    """A constant that broadcasts along the channel axis only, as float64 of shape (channels,); None otherwise."""
    if operand is None or (not np.issubdtype(operand.dtype, np.inexact) and operand.dtype.kind != "V"):
        return None
    if rank is None and (operand.ndim > 1 or axis != -1):
        return None
    if rank is not None and operand.ndim > rank:
        return None
    full = (1,) * ((rank or 1) - operand.ndim) + operand.shape
    place = axis % len(full)
    if full[place] not in (1, channels) or any(d != 1 for i, d in enumerate(full) if i != place):
        return None
    return np.broadcast_to(operand.astype(np.float64).reshape(-1), (channels,))


def _obstacle(layer: ir.Node, affine: Affine) -> str | None:
    """Why the affine map cannot be folded although its form would allow it, or None."""
    weight = layer.inputs[1]
    if (affine.scale != 1).any() and weight is not None and len(weight.uses()) > 1:
        return "the weight is shared with another node"
    if layer.op_type == "Gemm" and _bias(layer) is None:
        return "the Gemm's third input is not a bias along the channels"
    return None


def _bias(layer: ir.Node) -> Array | None:
    """The bias as float64 of shape (channels,), `beta` included; zeros if absent; None if of another form."""
    channels = _channels(layer)
    held = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if held is None:
        return np.zeros(channels)
    bias = _along_channels(held, channels, 2 if layer.op_type == "Gemm" else 1, -1)
    return None if bias is None else bias * float(attribute(layer, "beta", 1.0))


def _folded(layer: ir.Node, affine: Affine) -> tuple[Array, Array | None] | None:
    """The new weight and bias (None where a MatMul needs none), or None if they leave the range of their type."""
    weight, bias = constant(layer.inputs[1]), _bias(layer)
    if weight is None or bias is None:
        return None
    with np.errstate(over="ignore"):
        scaled = (weight.astype(np.float64) * _shaped(affine.scale, layer, weight)).astype(weight.dtype)
        shifted = (bias * affine.scale + affine.shift).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return None
    return scaled, shifted if layer.op_type != "MatMul" or (affine.shift != 0).any() else None


def _folded_ahead(layer: ir.Node, affine: Affine) -> tuple[Array, Array | None] | None:
    """Weight and bias (None if it stays) of a convolution that is handed what the affine map read; None as above."""
    weight, bias, groups = constant(layer.inputs[1]), _bias(layer), int(attribute(layer, "group", 1))
    if weight is None or bias is None:
        return None
    grouped = weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    with np.errstate(over="ignore"):
        scaled = (grouped * affine.scale.reshape(groups, 1, -1, 1)).reshape(weight.shape).astype(weight.dtype)
        shift = np.einsum("goik,gi->go", grouped, affine.shift.reshape(groups, -1)).reshape(-1)
        shifted = (bias + shift).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return None
    return scaled, shifted if affine.shift.any() else None


def _shaped(scale: Array, layer: ir.Node, weight: Array) -> Array:
    """The per-channel scale in a shape that multiplies the weight."""
    if layer.op_type == "Conv":
        return scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":  # weight: (inputs, channels / group, *kernel), inputs ordered by group
        group = int(attribute(layer, "group", 1))
        per_input = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        return per_input.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    return scale[:, None] if attribute(layer, "transB", 0) else scale[None, :]


def _set_input(model: ir.Model, layer: ir.Node, index: int, array: Array) -> None:
    """Give the layer this array as an input: under the old name if the layer alone reads it."""
    held = layer.inputs[index] if index < len(layer.inputs) else None
    tensor = ir.Tensor(array, name=held.name if held is not None else None)
    if held is not None and held.is_initializer() and len(held.uses()) == 1 and not held.is_graph_output():
        held.const_value, held.shape = tensor, ir.Shape(array.shape)
        return
    hint = held.name if held is not None else f"{layer.inputs[1].name}_bias"  # type: ignore[union-attr]
    replace_input(layer, index, add_initializer(model, str(hint), array))
