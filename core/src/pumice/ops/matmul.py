"""Matrix products: MatMul (NumPy's batched rules), Gemm (alpha A B + beta C) and Einsum.

Floating point uses BLAS in the type of the operands; float16 and bfloat16 accumulate in float32. Integers are exact:
products of 8-bit integers are summed in float64, whose 53 bits hold every partial sum of up to 2^37 of them, which lets
BLAS do the work; wider integers use integer arithmetic, wrapping as C does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic


def exact(a: Array, b: Array, out: Array | None = None) -> Array:
    """The product in the type of the operands, integers without rounding."""
    if a.dtype.kind in "iu" and max(a.dtype.itemsize, b.dtype.itemsize) == 1:
        product: Array = np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int32)
        if out is None:
            return product
        out[...] = product
        return out
    return np.asarray(np.matmul(a, b, out=out))


def _matmul(node: Node, a: Array, b: Array) -> Outputs:
    return (np.matmul(wide(a), wide(b)).astype(a.dtype, copy=False),)


def _gemm(node: Node, a: Array, b: Array, c: Array | None = None) -> Outputs:
    left = wide(a).T if node.get("transA", 0) else wide(a)
    right = wide(b).T if node.get("transB", 0) else wide(b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = left @ right
    if alpha != 1:
        y = alpha * y
    if c is not None:
        y = y + (wide(c) if beta == 1 else beta * wide(c))
    return (y.astype(a.dtype, copy=False),)


def _einsum(node: Node, *arrays: Array) -> Outputs:
    equation = node.attributes["equation"].replace(" ", "")
    y = np.einsum(equation, *map(wide, arrays), optimize=len(arrays) > 1)
    return (np.asarray(y).astype(arrays[0].dtype, copy=False),)


def _fused_matmul(node: Node, a: Array, b: Array) -> Outputs:
    """ONNX Runtime's alpha op(A) op(B)."""
    left = np.swapaxes(a, -1, -2) if node.get("transA", 0) else a
    right = np.swapaxes(b, -1, -2) if node.get("transB", 0) else b
    return (node.get("alpha", 1.0) * np.matmul(left, right),)


def _det(node: Node, x: Array) -> Outputs:
    return (np.asarray(np.linalg.det(wide(x))).astype(x.dtype),)


def _matmul_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    a = inputs[0]
    assert a is not None
    return OpCost(macs=elements(outputs[0]) * a[-1], params=_weights(inputs), bytes=_bytes(node, inputs, outputs))


def _gemm_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    a = inputs[0]
    assert a is not None
    depth = a[0] if node.get("transA", 0) else a[-1]
    params = sum(elements(shape) for shape in inputs[1:])
    return OpCost(macs=elements(outputs[0]) * depth, params=params, bytes=_bytes(node, inputs, outputs))


def _einsum_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """The naive nest of loops: one multiply-add per assignment of all indices (ellipses: of the output's size)."""
    terms = node.attributes["equation"].replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        if "." in term or shape is None:
            return OpCost(macs=elements(outputs[0]), bytes=_bytes(node, inputs, outputs))
        sizes.update(zip(term, shape, strict=True))
    return OpCost(macs=math.prod(sizes.values()), bytes=_bytes(node, inputs, outputs))


def _weights(inputs: Sequence[Shape]) -> int:
    """The second operand counts as weights if it has no batch axes, as in a linear layer."""
    b = inputs[1]
    return elements(b) if b is not None and len(b) <= 2 else 0


def _bytes(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return traffic(node, inputs, outputs).bytes


OPS = (
    Op("MatMul", forward=_matmul, cost=_matmul_cost),
    Op("Gemm", forward=_gemm, cost=_gemm_cost),
    Op("Einsum", since=12, forward=_einsum, cost=_einsum_cost),
    Op("Det", since=11, forward=_det),
    Op("FusedMatMul", domain="com.microsoft", forward=_fused_matmul, cost=_matmul_cost),
)
