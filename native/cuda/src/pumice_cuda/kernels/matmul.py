"""Integer matrix products of the Plan whose second operand is a constant matrix: exact, requantized as they are stored.

Zero points of the first operand become an offset of the sums, those of the second are taken off its levels, which must
still be of 8 bits. What dynamic quantization writes after a product (Cast, Mul by the scales) and what follows it (Add,
Gelu) is computed as it is stored. Products of floats are cuBLAS's (`blas`); anything else goes to core's code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Link, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.constants import Levels, bound, is_single, number, vector
from pumice_cuda.transfers import on_device

BYTES = frozenset({"uint8", "int8"})
_MICROSOFT = "com.microsoft"
FLOAT = 1
"""ONNX's number of float32."""
_TAIL = {"Cast": "c", "Mul": "m", "Add": "a", "Gelu": "g"}
_FUSED = re.compile("cma{0,2}g?")
"""What may follow an integer product, a letter for an operator."""


def _product(a: Array, levels: Levels, epilogue: Any) -> Any:
    """epilogue(A B') for A (..., k)."""
    from pumice_cuda.gemm import gemm

    y = gemm(a.reshape(-1, a.shape[-1]), levels.values, epilogue)
    return y.reshape(*a.shape[:-1], y.shape[-1])


def _fits(a: Array, levels: Levels) -> bool:
    return bool(a.dtype.name in BYTES and a.size and a.ndim and a.shape[-1] == levels.values.shape[1])


def _levels(b: Any, zb: Any, *, transposed: bool = False) -> Levels | None:
    """Of a constant matrix (k, n), or (n, k) if it is transposed."""
    if b is None or b.ndim != 2 or b.dtype.name not in BYTES or (zb is not None and zb.ndim > 1):
        return None
    return Levels.of(b if transposed else b.T, zb)


def _matmul_integer(node: Node, constants: Sequence[Any]) -> Forward | None:
    """The zero point of A may be known only at run time, on the GPU: that of a dynamically quantized matrix."""
    levels = _levels(*constants)
    if levels is None:
        return None

    def run(node: Node, a: Array, b: Array, za: Any = None, zb: Any = None) -> Outputs:
        from pumice_cuda.epilogue import Epilogue

        if not _fits(a, levels) or not is_single(za):
            return reference.forward(node, a, b, za, zb)
        return (_product(a, levels, Epilogue(output="int32", **_offset(levels, za))),)

    return run


def _offset(levels: Levels, za: Any) -> dict[str, Any]:
    """What an epilogue needs to know of the zero point of A, which may be on the GPU."""
    if on_device(za) and za.dtype.name == "uint8":
        return {"offset": levels.sums, "offset_zero": za}
    return {"offset": None if za is None else levels.offset(za.reshape(()))}


def _scaled_product(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """MatMulInteger, Cast and Mul, as dynamic quantization writes them, and Add and Gelu after them."""
    from pumice_cuda.epilogue import Epilogue

    product, *tail = chain
    names = "".join(_TAIL.get(link.node.op_type, "?") for link in tail)
    b, zb = (*product.constants, None)[1], (*product.constants, None, None)[3]
    levels = _levels(b, zb) if _FUSED.fullmatch(names) and tail[0].node.get("to") == FLOAT else None
    if levels is None or any(link.node.get("approximate", "none") != "none" for link in tail):
        return None
    count = len(product.constants)
    activation: dict[str, Any] = {"activation": "gelu" if names.endswith("g") else "none"}

    def run(*arrays: Any) -> Any:
        a, given_b, za, given_zb = (*arrays[:count], None, None)[:4]
        scale, *addends = arrays[count:]
        if given_b is not b or given_zb is not zb or not _fits(a, levels) or not is_single(za):
            return NotImplemented
        terms = _float_terms((*a.shape[:-1], len(levels.sums)), scale, addends)
        if terms is None:
            return NotImplemented
        return (_product(a, levels, Epilogue(**activation, **_offset(levels, za), **terms)),)

    return run


def _float_terms(shape: tuple[int, ...], scale: Any, addends: Sequence[Any]) -> dict[str, Any] | None:
    """An epilogue's scale, bias and residual for a result of some shape; None where an array is none of these."""
    terms: dict[str, Any] = {"scale": scale.reshape(-1) if on_device(scale) else None}
    for addend in addends:
        whole = addend.shape == shape
        terms["residual" if whole else "bias"] = addend.reshape(-1, shape[-1]) if whole else addend.reshape(-1)
    fitting = {"scale": {(1,), shape[-1:]}, "bias": {shape[-1:]}}
    plain = all(v.dtype == np.float32 and v.flags.c_contiguous for v in (scale, *addends) if on_device(v))
    fits = terms["scale"] is not None and all(terms[k].shape in fitting[k] for k in fitting if k in terms)
    return terms if plain and fits and len(terms) == 1 + len(addends) else None


def _qlinear_matmul(node: Node, constants: Sequence[Any]) -> Forward | None:
    sa, za, b, sb, zb, sy, zy = constants
    known = all(c is not None for c in constants) and is_single(sa, za, sy, zy) and zy.dtype.name in BYTES
    levels = _levels(b, zb) if known and sb.ndim <= 1 else None
    if levels is None:
        return None
    multiplier = vector(sa) * vector(sb) / vector(sy)
    return _requantized(levels, multiplier, number(za), number(zy), zy.dtype.name)


def _qgemm(node: Node, constants: Sequence[Any]) -> Forward | None:
    """onnxruntime's quantized Gemm: the bias is in units of the sums; without an output scale the result is float."""
    sa, za, b, sb, zb, c, sy, zy = constants
    known = all(x is not None for x in (sa, za, b, sb)) and is_single(sa, za, sy, zy) and not node.get("transA", 0)
    absent = (sy is None) == (zy is None)
    levels = _levels(b, zb, transposed=bool(node.get("transB", 0))) if known and absent else None
    if levels is None or (c is not None and c.size != len(levels.sums)):
        return None
    multiplier = np.float32(node.get("alpha", 1.0)) * vector(sa) * vector(sb)
    multiplier = multiplier if sy is None else multiplier / vector(sy)
    output = "float32" if zy is None else zy.dtype.name
    return _requantized(levels, multiplier, number(za), number(zy), output, None if c is None else c.reshape(-1))


def _requantized(levels: Levels, multiplier: Any, za: int, zy: int, output: str, bias: Any = None) -> Forward:
    from pumice_cuda.epilogue import Epilogue

    epilogue = Epilogue(output=output, scale=multiplier, offset=levels.offset(za, bias), zero=zy)

    def run(node: Node, a: Array, *rest: Any) -> Outputs:
        return (_product(a, levels, epilogue),) if _fits(a, levels) else reference.forward(node, a, *rest)

    return run


def _record(op_type: str, prepare: Any, positions: Sequence[int], **fields: Any) -> Kernel:
    return Kernel(
        op_type=op_type, run=reference.forward, bind=bound(positions, prepare), dtypes=BYTES, rtol=0.0, atol=0.0,
        **fields,
    )  # fmt: skip


KERNELS = (
    _record("MatMulInteger", _matmul_integer, (1, 3), fuse=_scaled_product),
    _record("QLinearMatMul", _qlinear_matmul, (1, 2, 3, 4, 5, 6, 7)),
    _record("QGemm", _qgemm, (1, 2, 3, 4, 5, 6, 7, 8), domain=_MICROSOFT),
)
