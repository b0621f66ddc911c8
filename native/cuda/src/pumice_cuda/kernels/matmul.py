"""Integer matrix products of the Plan whose second operand is a constant matrix: exact, requantized as they are stored.

Zero points of the first operand become an offset of the sums, those of the second are taken off its levels, which must
still be of 8 bits. What dynamic quantization writes after a product (Cast, Mul by the scales) and what follows it (Add,
Gelu) is computed as it is stored; if that is quantized next, and after factors of its columns, its range is noted.
Products of floats are cuBLAS's (`blas`); anything else goes to core's code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Link, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.constants import Levels, bound, is_single, number, vector
from pumice_cuda.transfers import on_device

if TYPE_CHECKING:
    from pumice_cuda.epilogue import Epilogue

BYTES = frozenset({"uint8", "int8"})
_MICROSOFT = "com.microsoft"
FLOAT = 1
"""ONNX's number of float32."""
_TAIL = {"Cast": "c", "Mul": "m", "Add": "a", "Gelu": "g"}
_FUSED = re.compile("cma{0,2}g?")
"""What may follow an integer product, a letter for an operator."""
_FLOAT_TAIL = {"Add": "a", "Gelu": "g", "Mul": "m", "DynamicQuantizeLinear": "q"}
_FUSED_FLOATS = re.compile("(?=.)a?g?(m?q)?")
"""What may follow a product that gives floats."""


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


class _Dequantized:
    """Of a MatMulIntegerToFloat whose B is known: what becomes of the sums. Scales of A are known or on the GPU."""

    def __init__(self, levels: Levels, known: Sequence[Any]) -> None:
        """`known` are the constants among the node's inputs."""
        _, _, sa, sb, _, _, bias = self._known = known
        self.levels = levels
        self._terms: dict[str, Any] = {"scale": vector(sb) if sa is None else vector(sb) * vector(sa)}
        if bias is not None:
            self._terms["bias"] = vector(bias)

    @classmethod
    def of(cls, constants: Sequence[Any]) -> _Dequantized | None:
        known = _seven(constants)
        _, b, sa, sb, _, zb, bias = known
        levels = _levels(b, zb) if sb is not None and sb.ndim <= 1 and is_single(sa) else None
        fits = levels is not None and (bias is None or bias.shape == levels.sums.shape)
        return cls(levels, known) if levels is not None and fits else None

    def __call__(self, inputs: Sequence[Any], **more: Any) -> Epilogue | None:
        """The epilogue; None where the kernel does not take the inputs."""
        from pumice_cuda.epilogue import Epilogue

        a, _, sa, _, za, _, _ = given = _seven(inputs)
        others = (1, 3, 5, 6) if self._known[2] is None else (1, 2, 3, 5, 6)
        if any(given[i] is not self._known[i] for i in others) or not _fits(a, self.levels) or not is_single(sa, za):
            return None
        if self._known[2] is not None:
            return Epilogue(**self._terms, **_offset(self.levels, za), **more)
        if not on_device(sa) or sa.dtype != np.float32:
            return None
        return Epilogue(**self._terms, scale_by=sa, **_offset(self.levels, za), **more)


def _seven(inputs: Sequence[Any]) -> list[Any]:
    """A, B, their scales, their zero points and the bias; None where one is absent."""
    return [*inputs, *[None] * 7][:7]


def _to_float(node: Node, constants: Sequence[Any]) -> Forward | None:
    terms = _Dequantized.of(constants)
    if terms is None:
        return None

    def run(node: Node, *inputs: Any) -> Outputs:
        epilogue = terms(inputs)
        return reference.forward(node, *inputs) if epilogue is None else (_product(inputs[0], terms.levels, epilogue),)

    return run


def _float_product(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """MatMulIntegerToFloat, and Add, Gelu, Mul by a vector and DynamicQuantizeLinear after it."""
    product, *tail = chain
    names = "".join(_FLOAT_TAIL.get(link.node.op_type, "?") for link in tail)
    terms = _Dequantized.of(product.constants) if _FUSED_FLOATS.fullmatch(names) else None
    if terms is None or any(link.node.get("approximate", "none") != "none" for link in tail):
        return None
    count, activation = len(product.constants), "gelu" if "g" in names else "none"

    def run(*arrays: Any) -> Any:
        inputs, rest = arrays[:count], list(arrays[count:])
        shape = (*inputs[0].shape[:-1], len(terms.levels.sums))
        residual = rest.pop(0) if "a" in names else None
        factor = rest.pop(0) if "m" in names else None
        if not _is_float(residual, shape) or not _is_float(factor, shape[-1:]):
            return NotImplemented
        more = {} if residual is None else {"residual": residual.reshape(-1, shape[-1])}
        epilogue = terms(inputs, activation=activation, **more)
        if epilogue is None:
            return NotImplemented
        if "q" in names:
            return _quantized(inputs[0], terms.levels, epilogue, factor)
        return (_product(inputs[0], terms.levels, epilogue),)

    return run


def _quantized(a: Array, levels: Levels, epilogue: Any, factor: Any) -> Any:
    """DynamicQuantizeLinear of a product times factors."""
    import cupy

    from pumice_cuda import dynamic
    from pumice_cuda.epilogue import ranges_shape

    columns = len(levels.sums)
    if columns % dynamic.WIDE:
        return NotImplemented
    ranges = cupy.empty(ranges_shape(a.size // a.shape[-1], columns), np.float32)
    y = _product(a, levels, attrs.evolve(epilogue, ranges=ranges, factor=factor))
    return dynamic.quantize_within(y, ranges)


def _is_float(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array is contiguous float32 on the GPU of a shape; None is."""
    return x is None or bool(on_device(x) and x.shape == shape and x.dtype == np.float32 and x.flags.c_contiguous)


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
    Kernel(
        op_type="MatMulIntegerToFloat", domain=_MICROSOFT, run=reference.forward, bind=_to_float, fuse=_float_product,
        dtypes=BYTES, rtol=1e-6, atol=1e-6,
    ),
    _record("QLinearMatMul", _qlinear_matmul, (1, 2, 3, 4, 5, 6, 7)),
    _record("QGemm", _qgemm, (1, 2, 3, 4, 5, 6, 7, 8), domain=_MICROSOFT),
)  # fmt: skip
