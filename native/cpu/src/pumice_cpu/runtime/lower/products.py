"""Matrix products: of real numbers, of levels, and of real numbers quantized on the way.

Strided operands are read where they lie, so that the transpositions around attention cost nothing.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array
from pumice.program import ABSENT, Step
from pumice_cpu.gemm import ACTIVATIONS, PRODUCTS, TYPES
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler, Levels
from pumice_cpu.runtime.lower.activations import bounds
from pumice_cpu.runtime.lower.lowbit import by_codebook
from pumice_cpu.runtime.lower.quantized import BYTES
from pumice_cpu.runtime.views import View, fresh

MS = "com.microsoft"


@attrs.define
class Tail:
    """What happens to products on their way out, and the value that they become."""

    slot: int
    scale: float = 1.0
    bias: Array | None = None
    residual: int = ABSENT
    is_bounded: bool = False
    low: float = 0.0
    high: float = 0.0

    def epilogue(self) -> dict[str, Any]:
        scale = None if self.scale == 1.0 else np.full(1, self.scale, np.float32)
        return {
            "output": TYPES["float32"], "activation": ACTIVATIONS["clip" if self.is_bounded else "none"],
            "scale": scale, "bias": self.bias,
            "low": self.low, "high": self.high, "residual_type": TYPES["float32"], "residual_scale": 1.0,
        }  # fmt: skip


def follow(c: Compiler, slot: int, *, scales: bool = False, residuals: bool = True) -> Tail:
    """Absorb what an epilogue does at no cost: a constant factor, a bias, a residual sum, bounds, in this order.

    GELU and its like stay steps of their own, in place: whole rows of them take half the time of tiles.
    """
    tail = Tail(slot)
    while not tail.is_bounded and (step := c.reader(tail.slot)) is not None:
        if not _take(c, tail, step, scales, residuals):
            break
        c.absorb(step)
        tail.slot = step.outputs[0]
    return tail


def _take(c: Compiler, tail: Tail, step: Step, scales: bool, residuals: bool) -> bool:
    kind = step.node.op_type
    if c.shape(step.outputs[0]) != c.shape(tail.slot) or not c.is_float(step.outputs[0]):
        return False
    if kind in {"Mul", "Div"}:
        return scales and _take_factor(c, tail, step)
    if kind == "Add":
        return tail.residual == ABSENT and (_take_bias(c, tail, step) or (residuals and _take_residual(c, tail, step)))
    found = bounds(c, step)
    if found is not None and step.inputs[0] == tail.slot:
        tail.is_bounded, (tail.low, tail.high) = True, found
    return found is not None


def _take_factor(c: Compiler, tail: Tail, step: Step) -> bool:
    factor = c.scalar(step.inputs[1]) if step.inputs[0] == tail.slot else None
    if factor is None and step.node.op_type == "Mul":
        factor = c.scalar(step.inputs[0])
    if factor is None or tail.bias is not None:
        return False
    tail.scale *= factor if step.node.op_type == "Mul" else 1.0 / factor
    return True


def _other(tail: Tail, step: Step) -> int:
    return step.inputs[1] if step.inputs[0] == tail.slot else step.inputs[0]


def _take_bias(c: Compiler, tail: Tail, step: Step) -> bool:
    value, width = c.known(_other(tail, step)), c.shape(tail.slot)[-1]
    if value is None or value.size not in {1, width} or value.size != math.prod(value.shape[-1:]):
        return False
    spread = np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (width,)), np.float32)
    tail.bias = spread if tail.bias is None else tail.bias + spread
    return True


def _take_residual(c: Compiler, tail: Tail, step: Step) -> bool:
    other = _other(tail, step)
    if other == tail.slot or not c.has_view(other) or c.shape(other) != c.shape(tail.slot):
        return False
    tail.residual = other
    return True


# --- real numbers -----------------------------------------------------------------------------------------------------


def matmul(c: Compiler, step: Step) -> bool:
    a, b = step.inputs
    if not c.is_float(a, b) or c.trace.is_known(a) or len(c.shape(a)) < 2 or len(c.shape(b)) < 2:
        return False
    if by_codebook(c, step):
        return True
    if len(c.shape(b)) == 2 and c.trace.is_known(b):
        dense(c, a, b, step.outputs[0], transposed=False)
    else:
        stacked(c, c.view(a), c.view(b), step.outputs[0])
    return True


def fused_matmul(c: Compiler, step: Step) -> bool:
    """Factors and transpositions of ONNX Runtime's FusedMatMul."""
    if step.node.get("transBatchA", 0) or step.node.get("transBatchB", 0) or not c.is_float(*step.inputs):
        return False
    left, right = (
        View(v.root, v.array.swapaxes(-1, -2) if step.node.get(f"trans{name}", 0) else v.array)
        for name, v in zip("AB", map(c.view, step.inputs), strict=True)
    )
    stacked(c, left, right, step.outputs[0], scale=step.node.get("alpha", 1.0))
    return True


def general(c: Compiler, step: Step) -> bool:
    """Gemm with constant weights and a bias a column."""
    a, b = step.inputs[:2]
    third = step.inputs[2] if len(step.inputs) > 2 else ABSENT
    value, width = c.known(third), c.shape(step.outputs[0])[-1]
    if not c.is_float(a, b) or not c.trace.is_known(b) or c.trace.is_known(a) or step.node.get("alpha", 1.0) != 1.0:
        return False
    if third != ABSENT and (value is None or value.size not in {1, width} or math.prod(value.shape[-1:]) != value.size):
        return False
    bias = None
    if value is not None:
        bias = np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (width,)), np.float32) * np.float32(
            step.node.get("beta", 1.0)
        )
    dense(c, a, b, step.outputs[0], transposed=bool(step.node.get("transB", 0)), bias=bias,
          turned=bool(step.node.get("transA", 0)))  # fmt: skip
    return True


def dense(
    c: Compiler, a: int, b: int, y: int, *, transposed: bool, bias: Array | None = None, turned: bool = False
) -> None:
    """By packed constant weights; rows are all axes but the last."""

    def make() -> packing.Packed:
        weights = c.known(b)
        assert weights is not None
        return packing.matrix(weights.T if transposed else weights, "float")

    given = View(c.view(a).root, c.view(a).array.T) if turned else _rows(c, a)
    tail = follow(c, y)
    if bias is not None:
        tail.bias = bias if tail.bias is None else bias + tail.bias
    width = c.shape(y)[-1]
    residual = None if tail.residual == ABSENT else c.plain(tail.residual)
    c.emit(
        "gemm", c.result(tail.slot), given, residual, weights=c.packer.get((b, "float", transposed), make),
        a=_matrix(given.array.reshape(-1, given.shape[-1])), y_stride=width, op="MatMul",
        epilogue=tail.epilogue() | {"residual_stride": width if residual else 0},
    )  # fmt: skip


def _rows(c: Compiler, slot: int) -> View:
    """The operand, where its leading axes make rows at one distance; a copy otherwise."""
    view = c.view(slot)
    if view.array.ndim == 2:
        return view
    flat = view.array.reshape(-1, view.shape[-1])
    return view if np.may_share_memory(flat, view.array) and flat.strides[-1] >= 0 else c.plain(slot)


def _matrix(array: Array) -> dict[str, Any]:
    down, across = (s // array.itemsize for s in array.strides[-2:])
    rows, columns = array.shape[-2:]
    return {
        "type": TYPES[array.dtype.name], "rows": rows, "columns": columns, "row_stride": down, "column_stride": across,
    }  # fmt: skip


def stacked(c: Compiler, left: View, right: View, y: int, *, scale: float = 1.0) -> None:
    """Stacks of matrices; a Transpose that follows settles how the result lies, so that it need not be copied."""
    tail = follow(c, y, scales=True, residuals=False)
    tail.scale *= scale
    order = _wanted_order(c, tail.slot)
    target = c.result(tail.slot, order)
    stack = target.shape[:-2]
    offsets = [_offsets(v.array, stack) for v in (left, right, target)]
    c.emit(
        "products", target, left, right, product=PRODUCTS["float"], count=math.prod(stack),
        a=_matrix(left.array), b=_matrix(right.array), a_offsets=offsets[0], b_offsets=offsets[1],
        y_offsets=offsets[2], y_stride=target.array.strides[-2] // target.array.itemsize, epilogue=tail.epilogue(),
        op="MatMul",
    )  # fmt: skip


def _wanted_order(c: Compiler, slot: int) -> tuple[int, ...] | None:
    """The order in which a Transpose behind the value would find it in C order, if the last axis stays the fastest."""
    step = c.readers.get(slot)
    if c.reads[slot] != 1 or step is None or step.node.op_type != "Transpose":
        return None
    order = tuple(step.node.get("perm") or range(len(c.shape(slot)))[::-1])
    return order if order[-1] == len(order) - 1 else None


def _offsets(array: Array, stack: tuple[int, ...]) -> Array:
    """Elements to the first of each matrix, in the order of the stack."""
    spread = np.broadcast_to(array, (*stack, *array.shape[-2:]))
    total = np.zeros(stack, np.int64)
    for axis, extent in enumerate(stack):
        along = [1] * len(stack)
        along[axis] = extent
        total += (np.arange(extent, dtype=np.int64) * (spread.strides[axis] // array.itemsize)).reshape(along)
    return total.ravel()


# --- levels -----------------------------------------------------------------------------------------------------------


def _zero(c: Compiler, slot: int) -> Array:
    value = c.known(slot)
    return np.zeros(1, np.int32) if value is None else value.reshape(-1).astype(np.int32)


def _levels(
    c: Compiler, a: int, b: int, y: int, za: int, zb: int, epilogue: dict[str, Any], *, transposed: bool = False
) -> None:
    """Levels by packed constant levels."""

    def make() -> packing.Packed:
        weights = c.known(b)
        assert weights is not None
        return packing.matrix(weights.T if transposed else weights, "integer")

    width, zeros, given = c.shape(y)[-1], _zero(c, zb), _rows(c, a)
    b_zero = np.ascontiguousarray(np.broadcast_to(zeros, (width,))) if zeros.any() else None
    c.emit(
        "gemm", c.result(y), given, None, weights=c.packer.get((b, "integer", transposed), make),
        a=_matrix(given.array.reshape(-1, given.shape[-1])), a_zero=int(_zero(c, za)[0]), b_zero=b_zero,
        y_stride=width, epilogue=epilogue,
    )  # fmt: skip


def _constant_levels(c: Compiler, a: int, b: int, rest: tuple[int, ...]) -> bool:
    """Whether `_levels` can multiply them: constant weights, one zero point of the data, parameters that are known."""
    known = all(slot == ABSENT or c.trace.is_known(slot) for slot in (b, *rest))
    if not known or {c.dtype(a), c.dtype(b)} - BYTES or c.trace.is_known(a):
        return False
    return len(c.shape(b)) == 2 and len(c.shape(a)) >= 2


def _scales(values: Any) -> Array:
    return np.ascontiguousarray(np.asarray(values, np.float32).reshape(-1))


def qlinear_matmul(c: Compiler, step: Step) -> bool:
    a, sa, za, b, sb, zb, sy, zy = step.inputs
    if not _constant_levels(c, a, b, (sa, za, sb, zb, sy, zy)) or c.dtype(zy) not in BYTES:
        return False
    by_a, by_b, by_y = (np.asarray(c.known(s), np.float32) for s in (sa, sb, sy))
    if by_a.size != 1 or _zero(c, za).size != 1 or by_y.size != 1:
        return False
    scale = _scales(by_a.reshape(()) * by_b / by_y.reshape(()))
    epilogue = {"output": TYPES[c.dtype(zy).name], "scale": scale, "scale_step": int(scale.size > 1)}
    _levels(c, a, b, step.outputs[0], za, zb, epilogue | {"zero": int(_zero(c, zy)[0])})
    return True


def matmul_to_float(c: Compiler, step: Step) -> bool:
    a, b, sa, sb, za, zb, bias = (*step.inputs, *[ABSENT] * 7)[:7]
    by_a, by_b, added = c.known(sa), c.known(sb), c.known(bias)
    if by_a is None or by_b is None or by_a.size != 1 or not _constant_levels(c, a, b, (sa, sb, za, zb, bias)):
        return False
    if _zero(c, za).size != 1:
        return False
    scale = _scales(by_a.reshape(()) * by_b)
    bias_row = None if added is None else np.ascontiguousarray(added.reshape(-1), np.float32)
    epilogue = {"output": TYPES["float32"], "scale": scale, "scale_step": int(scale.size > 1), "bias": bias_row}
    _levels(c, a, b, step.outputs[0], za, zb, epilogue)
    return True


def qgemm(c: Compiler, step: Step) -> bool:
    a, sa, za, b, sb, zb, offset, sy, zy = (*step.inputs, *[ABSENT] * 9)[:9]
    if not _constant_levels(c, a, b, (sa, za, sb, zb, offset, sy, zy)) or step.node.get("transA", 0):
        return False
    by_a, by_b = (np.asarray(c.known(s), np.float32) for s in (sa, sb))
    if by_a.size != 1:
        return False
    multiplier = np.float32(step.node.get("alpha", 1.0)) * by_a.reshape(()) * by_b
    epilogue: dict[str, Any] = {"output": TYPES["float32"]}
    if sy != ABSENT:
        multiplier = np.asarray(multiplier / np.asarray(c.known(sy), np.float32), np.float32)
        epilogue = {"output": TYPES[c.dtype(zy).name], "zero": int(_zero(c, zy)[0])}
    scale, added, width = _scales(multiplier), c.known(offset), c.shape(step.outputs[0])[-1]
    epilogue |= {"scale": scale, "scale_step": int(scale.size > 1)}
    if added is not None:
        epilogue["offset"] = np.ascontiguousarray(np.broadcast_to(added.reshape(-1), (width,)), np.int32)
    _levels(c, a, b, step.outputs[0], za, zb, epilogue, transposed=bool(step.node.get("transB", 0)))
    return True


# --- quantized on the way ---------------------------------------------------------------------------------------------


def dynamic(c: Compiler, step: Step) -> bool:
    """MatMulInteger of levels that `quantize_dynamic` made, the Cast and Mul by both scales, and what follows."""
    a, b, _, zb = (*step.inputs, ABSENT, ABSENT)[:4]
    found = scaled_sums(c, step)
    if found is None or a not in c.views:
        return False
    cast, product, _, scale = found
    c.absorb(cast)
    c.absorb(product)
    source = c.producer(a)
    assert source is not None
    levels = c.levels[c.plain(source.inputs[0])]
    _by_levels(c, levels, b, product.outputs[0], scale, _zero(c, zb), None)
    return True


def scaled_sums(c: Compiler, step: Step) -> tuple[Step, Step, Step, Array] | None:
    """Behind a MatMulInteger by constants: the Cast, the Mul, the product of the scales, the scales of the weights."""
    weights, source = c.known(step.inputs[1]), c.producer(step.inputs[0])
    if weights is None or weights.ndim != 2 or source is None or source.node.op_type != "DynamicQuantizeLinear":
        return None
    a_scale, a_zero = source.outputs[1:3]
    if step.inputs[2:3] != (a_zero,) or not all(s == ABSENT or c.trace.is_known(s) for s in step.inputs[3:]):
        return None
    cast = c.reader(step.outputs[0])
    product = None if cast is None or cast.node.op_type != "Cast" else c.reader(cast.outputs[0])
    if cast is None or product is None or product.node.op_type != "Mul":
        return None
    other = product.inputs[1] if product.inputs[0] == cast.outputs[0] else product.inputs[0]
    both = c.producer(other)
    if both is None or both.node.op_type != "Mul" or a_scale not in both.inputs:
        return None
    scale = c.known(both.inputs[1] if both.inputs[0] == a_scale else both.inputs[0])
    if scale is None:
        return None
    return cast, product, both, np.ascontiguousarray(scale.reshape(-1), np.float32)


def dynamic_quantize_matmul(c: Compiler, step: Step) -> bool:
    a, b, sb, zb, bias = (*step.inputs, *[ABSENT] * 5)[:5]
    scale, added = c.known(sb), c.known(bias)
    if (
        scale is None
        or not c.is_float(a)
        or not c.trace.is_known(b)
        or len(c.shape(b)) != 2
        or (bias and added is None)
    ):
        return False
    row = None if added is None else np.ascontiguousarray(added.reshape(-1), np.float32)
    scales = np.ascontiguousarray(scale.reshape(-1), np.float32)
    _by_levels(c, quantized(c, a, by_row=not c.exact), b, step.outputs[0], scales, _zero(c, zb), row)
    return True


def quantized(c: Compiler, slot: int, *, by_row: bool) -> Levels:
    """The levels of a matrix, made once for all that read them."""
    given = c.plain(slot)
    if given not in c.levels:
        rows, columns = given.array.size // given.shape[-1], given.shape[-1]
        values = fresh(given.shape, np.uint8)
        if by_row:
            scale = fresh((rows,), np.float32)
            c.emit("quantize_rows", values, given, scale, writes=(0, 2), rows=rows, columns=columns)
            c.levels[given] = Levels(values, scale, None)
        else:
            scale, zero = fresh((), np.float32), fresh((), np.uint8)
            c.emit("quantize_dynamic", values, given, scale, zero, writes=(0, 2, 3), count=given.array.size)
            c.levels[given] = Levels(values, scale, zero)
    return c.levels[given]


def _by_levels(c: Compiler, a: Levels, b: int, y: int, scale: Array, zero: Array, bias: Array | None) -> None:
    def make() -> packing.Packed:
        weights = c.known(b)
        assert weights is not None
        return packing.matrix(weights, "integer")

    tail = follow(c, y)
    if bias is not None:
        tail.bias = bias if tail.bias is None else bias + tail.bias
    depth, width = a.values.shape[-1], c.shape(y)[-1]
    residual = None if tail.residual == ABSENT else c.plain(tail.residual)
    c.emit(
        "dynamic", c.result(tail.slot), a.values, a.scale, a.zero, residual,
        weights=c.packer.get((b, "integer", False), make), rows=a.values.array.size // depth, depth=depth,
        columns=width, scale_step=int(scale.size > 1), scale=scale, y_stride=width, op="DynamicQuantizeMatMul",
        b_zero=np.ascontiguousarray(np.broadcast_to(zero, (width,))) if zero.any() else None,
        epilogue=tail.epilogue() | {"residual_stride": width if residual else 0},
    )  # fmt: skip


def quantize_dynamic(c: Compiler, step: Step) -> bool:
    """In fast mode each row has a scale of its own, where nothing but products reads the levels."""
    x, (y, scale, zero) = step.inputs[0], step.outputs
    if not c.is_float(x):
        return False
    sums = _all_products(c, y, scale, zero)
    for _, _, by_scales, _ in sums or ():
        c.drop(by_scales)
    levels = quantized(c, x, by_row=sums is not None and not c.exact)
    c.views[y], c.views[scale] = levels.values, levels.scale
    if levels.zero is not None:
        c.views[zero] = levels.zero
    return True


def _all_products(c: Compiler, y: int, scale: int, zero: int) -> list[tuple[Step, Step, Step, Array]] | None:
    """What is behind every product that reads the levels, if nothing else reads them or their parameters."""
    readers = [step for step in c.steps if {y, scale, zero} & {*step.inputs, *step.captures}]
    products = [s for s in readers if s.node.op_type == "MatMulInteger" and s.inputs[0] == y and c.settled(s)]
    found = [scaled_sums(c, step) for step in products]
    sums = [f for f in found if f is not None]
    taken = [*products, *(f[2] for f in sums)]
    whole = len(sums) == len(found) and all(any(s is t for t in taken) for s in readers)
    return sums if whole and sums and not {y, scale, zero} & {*c.program.outputs} else None


LOWERS = {
    ("", "MatMul"): matmul,
    (MS, "FusedMatMul"): fused_matmul,
    ("", "Gemm"): general,
    ("", "QLinearMatMul"): qlinear_matmul,
    (MS, "MatMulIntegerToFloat"): matmul_to_float,
    (MS, "QGemm"): qgemm,
    ("", "MatMulInteger"): dynamic,
    (MS, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    ("", "DynamicQuantizeLinear"): quantize_dynamic,
}
