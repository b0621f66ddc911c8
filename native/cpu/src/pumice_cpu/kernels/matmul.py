"""Matrix products of the Plan: MatMul, Gemm, FusedMatMul, and the integer ones, exact.

Where the second operand is a constant matrix it is packed on first use and kept with the plan; anything else is packed
as it is multiplied. Results of floating-point products differ from NumPy's by the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cpu.fusing import matrix_product

if TYPE_CHECKING:
    from pumice_cpu.gemm import Epilogue, Packed, Product

BYTES = frozenset({"uint8", "int8"})


class Weights:
    """A constant second operand, packed on first use; `packed_for` answers None for any other array."""

    def __init__(self, constant: Array | None, product: Product, transposed: bool = False) -> None:
        usable = isinstance(constant, np.ndarray) and constant.ndim == 2 and constant.size > 0
        self.constant = constant if usable else None
        self.product, self.transposed = product, transposed
        self.packed: Packed | None = None

    def packed_for(self, b: Array) -> Packed | None:
        from pumice_cpu.gemm import pack

        if b is not self.constant:
            return None
        if self.packed is None:
            self.packed = pack(b.T if self.transposed else b, self.product)
        return self.packed


def _bound(run: Callable[..., Outputs], position: int, product: Product) -> Callable[[Node, Sequence[Any]], Forward]:
    """`run(node, weights, *arrays)` with weights made from the constant at a position."""

    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        constant = constants[position] if position < len(constants) else None
        weights = Weights(constant, product, transposed=bool(node.get("transB", 0)))
        return lambda node, *arrays: run(node, weights, *arrays)

    return bind


def _unbound(run: Callable[..., Outputs], product: Product) -> Forward:
    """`run` where nothing is known to be constant."""
    nothing = Weights(None, product)
    return lambda node, *arrays: run(node, nothing, *arrays)


# --- floating point ---------------------------------------------------------------------------------------------------


def _product(a: Array, b: Array, weights: Weights, epilogue: Epilogue) -> Array:
    """NumPy's matmul of arrays of rank 2 or more."""
    from pumice_cpu.gemm import PLAIN, batched, gemm, product

    packed = weights.packed_for(b)
    if packed is not None:
        return gemm(a.reshape(-1, a.shape[-1]), packed, epilogue).reshape(*a.shape[:-1], packed.n)
    if b.ndim == 2 and epilogue is PLAIN and a.size and a.dtype == b.dtype == np.float32:
        return product(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])
    return batched(a, b, "float", epilogue)


def _check(a: Array, b: Array, depth: int) -> None:
    if a.shape[-1] != depth:
        raise ValueError(f"matrices {list(a.shape)} and {list(b.shape)} do not fit each other")


def _matmul(node: Node, weights: Weights, a: Array, b: Array) -> Outputs:
    from pumice_cpu.gemm import PLAIN

    _check(a, b, b.shape[-2] if b.ndim > 1 else b.shape[0])
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    y = _product(left, right, weights, PLAIN)
    y = y[..., 0, :] if a.ndim == 1 else y
    return (y[..., 0] if b.ndim == 1 else y,)


def _gemm(node: Node, weights: Weights, a: Array, b: Array, c: Array | None = None) -> Outputs:
    from pumice_cpu.gemm import Epilogue, batched, gemm

    left, right = a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    _check(left, right, right.shape[0])
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    fields: dict[str, Any] = {} if alpha == 1 else {"scale": alpha}
    if c is not None and beta != 0:
        rows, columns = left.shape[0], right.shape[1]
        if c.size == 1 or c.shape in {(columns,), (1, columns)}:
            bias = np.broadcast_to(c.reshape(-1), (columns,))
            fields["bias"] = bias if beta == 1 else np.float32(beta) * bias
        else:
            fields |= {"residual": np.broadcast_to(c, (rows, columns)), "residual_scale": beta}
    packed = weights.packed_for(b)
    if packed is not None:
        return (gemm(left, packed, Epilogue(**fields)),)
    return (batched(left, right, "float", Epilogue(**fields)),)


def _fused_matmul(node: Node, weights: Weights, a: Array, b: Array) -> Outputs:
    from pumice_cpu.gemm import Epilogue

    left = np.swapaxes(a, -1, -2) if node.get("transA", 0) else a
    right = np.swapaxes(b, -1, -2) if node.get("transB", 0) else b
    _check(left, right, right.shape[-2])
    alpha = node.get("alpha", 1.0)
    return (_product(left, b if weights.packed_for(b) else right, weights, Epilogue(scale=alpha)),)


def _is_plain_fused(node: Node) -> str | None:
    return "transposed batches" if node.get("transBatchA", 0) or node.get("transBatchB", 0) else None


# --- integers ---------------------------------------------------------------------------------------------------------


def _one(zero: Array | None) -> bool:
    return zero is None or zero.size == 1


def _value(zero: Array | None) -> int:
    return 0 if zero is None else int(zero.reshape(()))


def _along(zero: Array, rank: int, axis: int) -> Array:
    """A vector zero point laid along an axis; others are used as they are."""
    zero = zero.astype(np.int64)
    return zero.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if zero.ndim == 1 and rank > 1 else zero


def integer_product(a: Array, b: Array, weights: Weights, za: Array | None, zb: Array | None, e: Epilogue) -> Array:
    """epilogue((a - za)(b - zb)) for one zero point of A and, where B is a constant matrix, one a column of B."""
    from pumice_cpu.gemm import batched, gemm, pack

    if b.ndim == 2:
        packed = weights.packed_for(b) or pack(b, "integer")
        zeros = None if zb is None else zb.reshape(-1)
        y = gemm(a.reshape(-1, a.shape[-1]), packed, e, a_zero=_value(za), b_zero=zeros)
        return y.reshape(*a.shape[:-1], packed.n)
    return batched(a, b, "integer", e, a_zero=_value(za), b_zero=_value(zb))


def integer_sums(a: Array, b: Array, weights: Weights, za: Array | None, zb: Array | None) -> Array:
    """(a - za)(b - zb) in int32 for any zero points that ONNX allows."""
    from pumice_cpu.gemm import Epilogue

    sums = Epilogue(output=np.int32)
    if _one(za) and (_one(zb) or (zb is not None and b.ndim == 2 and zb.size == b.shape[1])):
        return integer_product(a, b, weights, za, zb, sums)
    total = integer_product(a, b, weights, None, None, sums).astype(np.int64)
    left, right = a.sum(-1, dtype=np.int64)[..., None], b.sum(-2, dtype=np.int64)[..., None, :]
    if za is not None:
        total -= _along(za, a.ndim, -2) * right
    if zb is not None:
        columns = _along(zb, b.ndim, -1)
        total -= left * columns
        if za is not None:
            total += a.shape[-1] * _along(za, a.ndim, -2) * columns
    return total.astype(np.int32)


def _with_matrices(run: Callable[..., Array], a: Array, b: Array) -> Array:
    """`run` on operands of rank 2 or more, their extra axis removed from the result."""
    _check(a, b, b.shape[-2] if b.ndim > 1 else b.shape[0])
    y = run(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    y = y[..., 0, :] if a.ndim == 1 else y
    return y[..., 0] if b.ndim == 1 else y


def _matmul_integer(
    node: Node, weights: Weights, a: Array, b: Array, za: Array | None = None, zb: Array | None = None
) -> Outputs:
    return (_with_matrices(lambda left, right: integer_sums(left, right, weights, za, zb), a, b),)


def _qlinear_matmul(
    node: Node, weights: Weights, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array, sy: Array, zy: Array
) -> Outputs:
    """The multiplier is computed as core does, in float32: (sa sb) / sy."""
    from pumice.ops.integer import requantize
    from pumice_cpu.gemm import Epilogue

    def run(left: Array, right: Array) -> Array:
        per_row = sa.size > 1
        multiplier: Array = (sa.reshape(-1, 1) if per_row else sa.reshape(())).astype(np.float32) * sb.astype(
            np.float32
        )
        multiplier = np.divide(multiplier, sy, dtype=np.float32)
        fits = not per_row and _one(za) and (right.ndim == 2 or (_one(zb) and sb.size == 1)) and zy.size == 1
        if not fits or zy.dtype.name not in BYTES:
            return requantize(integer_sums(left, right, weights, za, zb), multiplier, zy)
        e = Epilogue(output=zy.dtype, scale=multiplier.reshape(-1), zero=_value(zy))
        return integer_product(left, right, weights, za, zb, e)

    return (_with_matrices(run, a, b),)


def _qgemm(
    node: Node, weights: Weights, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array,
    c: Array | None = None, sy: Array | None = None, zy: Array | None = None,
) -> Outputs:  # fmt: skip
    """ONNX Runtime's quantized Gemm: bias in int32 before the scale; without an output scale the result is float."""
    from pumice_cpu.gemm import Epilogue, gemm, pack

    left = a.T if node.get("transA", 0) else a
    right = b.T if node.get("transB", 0) else b
    _check(left, right, right.shape[0])
    multiplier: Array = np.float32(node.get("alpha", 1.0)) * sa.astype(np.float32) * sb.astype(np.float32)
    if sy is not None and zy is not None:
        multiplier = np.divide(multiplier, sy, dtype=np.float32)
    fields: dict[str, Any] = {"output": np.float32} if zy is None else {"output": zy.dtype, "zero": _value(zy)}
    columns = right.shape[1]
    offset = None if c is None else c.reshape(-1)
    packed = weights.packed_for(b) or pack(right, "integer")
    e = Epilogue(scale=multiplier.reshape(-1), offset=offset, **fields)
    zeros = np.broadcast_to(zb.reshape(-1), (columns,))
    return (gemm(left, packed, e, a_zero=_value(za), b_zero=zeros),)


# --- records ----------------------------------------------------------------------------------------------------------


def _record(op_type: str, run: Callable[..., Outputs], product: Product, position: int = 1, **fields: Any) -> Kernel:
    return Kernel(op_type=op_type, run=_unbound(run, product), bind=_bound(run, position, product), **fields)


_MICROSOFT = "com.microsoft"
_SUMS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
_EXACT: dict[str, Any] = {"dtypes": BYTES, "rtol": 0.0, "atol": 0.0}

KERNELS = (
    _record("MatMul", _matmul, "float", fuse=matrix_product, **_SUMS),
    _record("Gemm", _gemm, "float", fuse=matrix_product, **_SUMS),
    _record("FusedMatMul", _fused_matmul, "float", domain=_MICROSOFT, accepts=_is_plain_fused, **_SUMS),
    _record("MatMulInteger", _matmul_integer, "integer", **_EXACT),
    _record("QLinearMatMul", _qlinear_matmul, "integer", 3, **_EXACT),
    _record("QGemm", _qgemm, "integer", 3, domain=_MICROSOFT, **_EXACT),
)
