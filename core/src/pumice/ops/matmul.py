"""Matrix products: MatMul (NumPy's batched rules), Gemm (alpha A B + beta C) and Einsum.

Floating point uses BLAS in the type of the operands; float16 and bfloat16 accumulate in float32. Integers are exact:
products of 8-bit integers are summed in float64, whose 53 bits hold every partial sum of up to 2^37 of them, which lets
BLAS do the work; wider integers use integer arithmetic, wrapping as C does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pumice.ops.channels import Channels, Same, Site, Summed, Tie, into, out, pointwise_ties
from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace, sum_to, zeros
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic

MULTIPLIERS: dict[str, Callable[..., Any]] = {}
"""What multiplies the matrices of a namespace, with the signature of `product`; NumPy's protocol chooses elsewhere."""


def product(a: Any, b: Any, out: Any = None) -> Any:
    """The matrix product after the rules of `numpy.matmul`."""
    return MULTIPLIERS.get(namespace(a).__name__, np.matmul)(a, b, out=out)


def exact(a: Array, b: Array, out: Array | None = None) -> Array:
    """The product in the type of the operands, integers without rounding."""
    if a.dtype.kind in "iu" and max(a.dtype.itemsize, b.dtype.itemsize) == 1:
        sums: Array = product(a.astype(np.float64), b.astype(np.float64)).astype(np.int32)
        if out is None:
            return sums
        out[...] = sums
        return out
    found = product(a, b, out)
    whole: Array = namespace(found).asarray(found)
    return whole


def _matmul(node: Node, a: Array, b: Array) -> Outputs:
    return (product(wide(a), wide(b)).astype(a.dtype, copy=False),)


def _gemm(node: Node, a: Array, b: Array, c: Array | None = None) -> Outputs:
    left = wide(a).T if node.get("transA", 0) else wide(a)
    right = wide(b).T if node.get("transB", 0) else wide(b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = product(left, right)
    if alpha != 1:
        y = alpha * y
    if c is not None:
        y = y + (wide(c) if beta == 1 else beta * wide(c))
    return (y.astype(a.dtype, copy=False),)


def _einsum(node: Node, *arrays: Array) -> Outputs:
    equation = node.attributes["equation"].replace(" ", "")
    y = np.einsum(equation, *map(wide, arrays), optimize=len(arrays) > 1)
    return (namespace(y).asarray(y).astype(arrays[0].dtype, copy=False),)


def _fused_matmul(node: Node, a: Array, b: Array) -> Outputs:
    """ONNX Runtime's alpha op(A) op(B)."""
    left = np.swapaxes(a, -1, -2) if node.get("transA", 0) else a
    right = np.swapaxes(b, -1, -2) if node.get("transB", 0) else b
    return (node.get("alpha", 1.0) * product(left, right),)


def _det(node: Node, x: Array) -> Outputs:
    y = np.linalg.det(wide(x))
    return (namespace(y).asarray(y).astype(x.dtype),)


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


# --- gradients --------------------------------------------------------------------------------------------------------


def product_vjp(a: Any, b: Any, dy: Any, wanted: Sequence[bool]) -> tuple[Any, Any]:
    """Of NumPy's batched product: dA = dY B^T, dB = A^T dY, vectors and repeated batch axes undone.

    Where a matrix is shared by the whole batch, the batch is folded into its rows: one large product, no sum after it.
    """
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    dy = dy.reshape(*dy.shape[: dy.ndim - (a.ndim > 1) - (b.ndim > 1)], left.shape[-2], right.shape[-1])
    if right.ndim == 2:
        rows, drows = left.reshape(-1, left.shape[-1]), dy.reshape(-1, dy.shape[-1])
        da = product(drows, right.T).reshape(a.shape) if wanted[0] else None
        return da, product(rows.T, drows).reshape(b.shape) if wanted[1] else None
    da = sum_to(product(dy, right.swapaxes(-1, -2)), left.shape).reshape(a.shape) if wanted[0] else None
    db = sum_to(product(left.swapaxes(-1, -2), dy), right.shape).reshape(b.shape) if wanted[1] else None
    return da, db


def _matmul_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    return product_vjp(inputs[0], inputs[1], grads[0], wanted)


def _gemm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    a, b = inputs[:2]
    left, right = a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    alpha, beta, dy = node.get("alpha", 1.0), node.get("beta", 1.0), grads[0]
    scaled = dy if alpha == 1 else alpha * dy
    da, db = product_vjp(left, right, scaled, wanted)
    found = [
        da.T if node.get("transA", 0) and da is not None else da,
        db.T if node.get("transB", 0) and db is not None else db,
    ]
    if len(inputs) > 2:
        found.append(sum_to(dy if beta == 1 else beta * dy, inputs[2].shape) if wanted[2] else None)
    return found


def _fused_matmul_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    flips = [bool(node.get(name, 0)) for name in ("transA", "transB")]
    operands = [x.swapaxes(-1, -2) if flip else x for x, flip in zip(inputs, flips, strict=True)]
    found = product_vjp(operands[0], operands[1], node.get("alpha", 1.0) * grads[0], wanted)
    return [g.swapaxes(-1, -2) if flip and g is not None else g for g, flip in zip(found, flips, strict=True)]


def _einsum_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """The gradient of an operand is the sum over every index it lacks of dy times the other operands."""
    terms, result = _indices(node.attributes["equation"].replace(" ", ""), inputs, outputs[0].ndim)
    return [_einsum_partial(i, terms, result, inputs, grads[0]) if want else None for i, want in enumerate(wanted)]


def _indices(equation: str, inputs: Arrays, rank: int) -> tuple[list[str], str]:
    """The terms with letters of their own in place of an ellipsis, aligned at its end."""
    left, arrow, result = equation.partition("->")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in equation]
    terms, widths = left.split(","), []
    for term, x in zip(terms, inputs, strict=True):
        widths.append(x.ndim - len(term.replace("...", "")) if "..." in term else 0)
    letters = "".join(spare[: max(widths, default=0)])
    full = [t.replace("...", letters[len(letters) - w :]) for t, w in zip(terms, widths, strict=True)]
    if not arrow:  # every index that occurs once, in alphabetical order
        named = left.replace(",", "").replace("...", "")
        return full, letters + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return full, result.replace("...", letters[len(letters) - rank + len(result.replace("...", "")) :])


def _einsum_partial(position: int, terms: Sequence[str], result: str, inputs: Arrays, dy: Any) -> Any:
    """A repeated index in the operand itself (a diagonal) and one that nothing else has (a sum) are put back."""
    term, x = terms[position], inputs[position]
    others = [t for i, t in enumerate(terms) if i != position]
    distinct = "".join(dict.fromkeys(term))
    known = [c for c in distinct if c in result or any(c in t for t in others)]
    operands = [y for i, y in enumerate(inputs) if i != position]
    equation = f"{','.join([result, *others])}->{''.join(known)}"
    found = np.einsum(equation, dy, *operands, optimize=len(operands) > 0)
    sizes = dict(zip(term, x.shape, strict=True))
    found = found.reshape([sizes[c] if c in known and found.shape[known.index(c)] != 1 else 1 for c in distinct])
    found = np.broadcast_to(found, [sizes[c] for c in distinct])
    if len(distinct) == len(term):
        return found
    grad = zeros(x)
    grad[tuple(np.ogrid[tuple(slice(sizes[c]) for c in distinct)][distinct.index(c)] for c in term)] = found
    return grad


def _det_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    return ((grads[0] * outputs[0])[..., None, None] * np.linalg.inv(inputs[0]).swapaxes(-1, -2),)


# --- channels ---------------------------------------------------------------------------------------------------------


def _product_ties(site: Site) -> Iterator[Tie]:
    """(..., m, k) x (..., k, n): rows are the left's, columns the right's, k is summed over; FusedMatMul may flip."""
    left, right, result = site.rank(0), site.rank(1), site.rank(~0)
    if not left or not right:
        return
    flips = [bool(site.node.get(name, 0)) for name in ("transA", "transB")]
    rows, depth = (left - 1, left - 2) if flips[0] else (left - 2, left - 1)
    depth_of_right = max(right - 2, 0)
    columns = right - 1
    if flips[1]:
        depth_of_right, columns = columns, depth_of_right
    yield Same(into(0, depth), into(1, depth_of_right))
    yield Summed(into(0, depth))
    if left > 1:
        yield Same(into(0, rows), out(0, result - 1 - (right > 1)))
    if right > 1:
        yield Same(into(1, columns), out(0, result - 1))
    for slot, rank in ((0, left), (1, right)):
        for back in range(3, rank + 1):
            if site.size(slot, rank - back) == site.size(~0, result - back):
                yield Same(into(slot, rank - back), out(0, result - back))


def _gemm_ties(site: Site) -> Iterator[Tie]:
    a, b = int(bool(site.node.get("transA", 0))), int(bool(site.node.get("transB", 0)))
    yield Same(into(0, 1 - a), into(1, b))
    yield Summed(into(0, 1 - a))
    yield Same(into(0, a), out(0, 0))
    yield Same(into(1, 1 - b), out(0, 1))
    yield from pointwise_ties(site, (2,))


def _einsum_ties(site: Site) -> Iterator[Tie]:
    """Axes of one letter are one axis; letters that the result lacks are summed over."""
    left, arrow, result = site.node.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(term)) < len(term) for term in terms):
        return
    places = {letter: out(0, axis) for axis, letter in enumerate(result)}
    for index, term in enumerate(terms):
        for axis, letter in enumerate(term):
            if letter in places:
                yield Same(into(index, axis), places[letter])
            else:
                places[letter] = into(index, axis)
                yield Summed(into(index, axis))


OPS = (
    Op(
        "MatMul", forward=_matmul, vjp=Vjp(_matmul_vjp, outputs=()), cost=_matmul_cost, channels=Channels(_product_ties)
    ),
    Op(
        "Gemm",
        forward=_gemm,
        vjp=Vjp(_gemm_vjp, inputs=(0, 1), outputs=()),
        cost=_gemm_cost,
        channels=Channels(_gemm_ties),
    ),
    Op(
        "Einsum",
        since=12,
        forward=_einsum,
        vjp=Vjp(_einsum_vjp, outputs=()),
        cost=_einsum_cost,
        channels=Channels(_einsum_ties),
    ),
    Op("Det", since=11, forward=_det, vjp=Vjp(_det_vjp)),
    Op(
        "FusedMatMul",
        domain="com.microsoft",
        forward=_fused_matmul,
        vjp=Vjp(_fused_matmul_vjp, outputs=()),
        cost=_matmul_cost,
        channels=Channels(_product_ties),
    ),
)
