"""Products with weights of 4 bits in blocks: one MatMulNBits for the DequantizeLinear and what reads it.

    DequantizeLinear(codes (k, n), scale (blocks, n), zero (blocks, n)) -> MatMul | Gemm

computes x ((codes - zero) scale), and so does MatMulNBits, for which there are kernels: the weights stay codes on the
GPU, where they would be floats of eight times the size. What these do not take is widened once, when the model is
opened.
"""

from __future__ import annotations

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, constant, is_constant, replace_value
from pumice.ops.record import Node
from pumice_cuda import compiling, device
from pumice_cuda.kernels.lowbit import KERNELS

MICROSOFT, PRODUCT, BITS = "com.microsoft", "MatMulNBits", 4
SOURCE = "lowbit_few"
"""Where it is for a GPU, all kernels of few bits have counterparts for it."""
MIDDLE = {ir.DataType.UINT4: 0, ir.DataType.INT4: 8}
"""What is added to a code to have it from 0 to 15, by type."""


@attrs.frozen(eq=False)
class Blocks:
    """A matrix (k, n) of codes from 0 to 15, a scale and a zero point for so many consecutive k."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    """(blocks, n)"""
    zero: NDArray[np.float32]
    """(blocks, n)"""
    size: int


def multiply_in_blocks(model: ir.Model) -> None:
    """Change the model in place, if this GPU has the kernels."""
    if not compiling.is_for(SOURCE, device.gpu().architecture):
        return
    for node in list(model.graph):
        blocks = _blocks(node)
        if blocks is None or node.outputs[0].is_graph_output():
            continue
        stored: list[ir.Value] = []
        for reader, at in list(node.outputs[0].uses()):
            bias = _bias(reader, blocks) if at == 1 else None
            if bias is not None:
                stored = stored or _stored(model, str(node.outputs[0].name), blocks)
                _replace(model, reader, blocks, stored, bias)
        if not list(node.outputs[0].uses()):
            model.graph.remove(node, safe=True)


def _blocks(node: ir.Node) -> Blocks | None:
    if node.op_type != "DequantizeLinear" or node.domain or attribute(node, "axis", 1) != 0:
        return None
    size, kind = attribute(node, "block_size", 0), node.inputs[0].dtype if node.inputs[0] is not None else None
    held = [constant(value) for value in node.inputs]
    if kind not in MIDDLE or not _takes(size) or any(array is None for array in held):
        return None
    codes, scale, *zeros = (array for array in held if array is not None)
    if codes.ndim != 2 or not codes.size or scale.dtype != np.float32:
        return None
    zero = (zeros[0] if zeros else np.zeros(scale.shape)).astype(np.float32) + MIDDLE[kind]
    return Blocks((codes.astype(np.int8) + MIDDLE[kind]).astype(np.uint8), scale, zero, size)


def _takes(size: int) -> bool:
    """Whether a kernel multiplies weights in blocks of a size."""
    attributes = {"bits": BITS, "block_size": size}
    product = Node(op_type=PRODUCT, domain=MICROSOFT, opset=1, attributes=attributes, outputs=("y",))
    return any(kernel.accepts(product) is None for kernel in KERNELS)


def _bias(reader: ir.Node, blocks: Blocks) -> list[ir.Value | None] | None:
    """The bias that a product adds (none, or one); None if it is no product of a kind."""
    if reader.domain or reader.graph is None:
        return None
    if reader.op_type == "MatMul":
        return []
    plain = attribute(reader, "alpha", 1.0) == 1 and attribute(reader, "beta", 1.0) == 1
    if reader.op_type != "Gemm" or not plain or attribute(reader, "transA", 0) or attribute(reader, "transB", 0):
        return None
    bias = reader.inputs[2] if len(reader.inputs) > 2 else None
    if bias is None:
        return []
    shape = None if not is_constant(bias) or bias.shape is None else tuple(bias.shape.numpy())
    return [bias] if shape == blocks.codes.shape[1:] else None


def _stored(model: ir.Model, name: str, blocks: Blocks) -> list[ir.Value]:
    """Codes, scales and zero points as MatMulNBits has them, output by output."""
    k, n = blocks.codes.shape
    padded = np.zeros((n, -(-k // blocks.size) * blocks.size), np.uint8)
    padded[:, :k] = blocks.codes.T
    packed = (padded[:, ::2] | padded[:, 1::2] << 4).reshape(n, -1, blocks.size // 2)
    arrays = {"codes": packed, "scale": blocks.scale.T, "zero": blocks.zero.T}
    return [add_initializer(model, f"{name}/{key}", np.ascontiguousarray(array)) for key, array in arrays.items()]


def _replace(
    model: ir.Model, reader: ir.Node, blocks: Blocks, stored: list[ir.Value], bias: list[ir.Value | None]
) -> None:
    k, n = blocks.codes.shape
    sizes = {"K": k, "N": n, "bits": BITS, "block_size": blocks.size}
    node = ir.Node(
        MICROSOFT, PRODUCT, [reader.inputs[0], *stored, *([None, *bias] if bias else [])],
        [ir.AttrInt64(key, value) for key, value in sizes.items()], num_outputs=1, name=reader.name,
    )  # fmt: skip
    model.graph.insert_after(reader, node)
    replace_value(reader.outputs[0], node.outputs[0])
    model.graph.remove(reader, safe=True)
