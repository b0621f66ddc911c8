"""Operators on levels of 8 bits, exact: the integers are those of core's operators, which are ONNX Runtime's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pumice.ops.record import Array
from pumice.ops.window import Window
from pumice.program import ABSENT, Step
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler
from pumice_cpu.runtime.lower.moves import common_order, join
from pumice_cpu.runtime.views import View, channels_last, fresh

MS = "com.microsoft"
BYTES = frozenset({np.dtype(np.uint8), np.dtype(np.int8)})
MOST_AXES = 3
LEVELS = 0
"""PUMICE_CONV_LEVELS."""
RESIDUAL_A, RESIDUAL_B = 1, 2
"""PUMICE_RESIDUAL_A, PUMICE_RESIDUAL_B."""
SUM_INPUTS = 8
"""Of a QLinearAdd with all zero points."""


def _all_known(c: Compiler, step: Step, data: int) -> bool:
    """Whether all inputs but the first few are constants."""
    return all(slot == ABSENT or c.trace.is_known(slot) for slot in step.inputs[data:])


def _number(c: Compiler, slot: int) -> int:
    value = c.known(slot)
    return 0 if value is None else int(value.reshape(-1)[0])


def _one(value: Array | None) -> bool:
    return value is None or value.size == 1


# --- convolution ------------------------------------------------------------------------------------------------------


def conv(c: Compiler, step: Step) -> bool:
    """With the residual sum behind it: added to the rounded levels, in fast mode before they are rounded."""
    x, w, zy = (step.inputs[i] for i in (0, 3, 7))
    levels, rank = c.known(w), len(c.shape(x)) - 2
    if not _all_known(c, step, 1) or levels is None or c.dtype(x) not in BYTES or not 0 < rank <= MOST_AXES:
        return False
    window = Window.of(step.node, c.shape(x)[2:], levels.shape[2:])
    # Levels that begin at zero stand for a ReLU, which one rounding after the sum would lose.
    inside = not c.exact and _number(c, zy) != _least(c, step.outputs[0])
    total = _residual_sum(c, step.outputs[0]) if inside or step.node.get("group", 1) == 1 else None
    epilogue = _requantization(c, step, total if inside and total is not None else step, len(levels))
    residual = None
    if total is not None:
        residual = c.channels_last(_other_operand(total, step.outputs[0])[0])
        epilogue |= _inside_sum(c, total, step.outputs[0]) if inside else _outside_sum(c, total, step.outputs[0])
        c.absorb(total)
    c.emit(
        "conv_u8", result_channels_last(c, (total or step).outputs[0]), c.channels_last(x), residual,
        conv=_packed_conv(c, step, window), batch=c.shape(x)[0], epilogue=epilogue, op=step.node.op_type,
    )  # fmt: skip
    return True


def _least(c: Compiler, slot: int) -> int:
    return -128 if c.dtype(slot) == np.int8 else 0


def _requantization(c: Compiler, step: Step, last: Step, filters: int) -> dict[str, Any]:
    """Of a convolution's sums to the levels of `last`: its own, or those of the sum behind it."""
    at = 6 if last is step else len(last.inputs) - 2
    sx, sw, sy = (np.asarray(c.known(slot), np.float32) for slot in (step.inputs[1], step.inputs[4], last.inputs[at]))
    multiplier = sx.reshape(()) * sw.reshape(-1) / sy.reshape(())
    zero, low = _number(c, last.inputs[at + 1]), _least(c, last.outputs[0])
    return {
        "result": LEVELS, "multiplier": np.ascontiguousarray(np.broadcast_to(multiplier, filters)),
        "low": low - zero, "high": low + 255 - zero, "zero_point": zero, "is_signed": int(low < 0),
    }  # fmt: skip


def _inside_sum(c: Compiler, total: Step, slot: int) -> dict[str, Any]:
    """A residual that is added before anything is rounded."""
    _, scale, zero = _other_operand(total, slot)
    sr, sy = (np.asarray(c.known(s), np.float32).reshape(()) for s in (scale, total.inputs[-2]))
    return {
        "residual_multiplier": float(sr / sy), "residual_zero_point": _number(c, zero),
        "residual_signed": int(_least(c, slot) < 0),
    }  # fmt: skip


def _outside_sum(c: Compiler, total: Step, slot: int) -> dict[str, Any]:
    """A residual that is added to levels, as one operand or the other."""
    place = RESIDUAL_B if total.inputs[0] == slot else RESIDUAL_A
    return {"residual_operand": place, "sum": _sum_factors(c, total)}


def _residual_sum(c: Compiler, slot: int) -> Step | None:
    """The QLinearAdd that alone reads a convolution's levels, if its other operand is there."""
    step = c.reader(slot)
    if step is None or step.node.op_type != "QLinearAdd":
        return None
    other, *parameters = _other_operand(step, slot)
    known = all(c.trace.is_known(s) and _one(c.known(s)) for s in (*parameters, *step.inputs[6:]))
    there = other != slot and other in c.views and c.shape(other) == c.shape(slot)
    return step if known and there and len(step.inputs) == SUM_INPUTS else None


def _other_operand(total: Step, slot: int) -> tuple[int, int, int]:
    """Levels, scale and zero point of what is added to a value."""
    first = 3 if total.inputs[0] == slot else 0
    levels, scale, zero = total.inputs[first : first + 3]
    return levels, scale, zero


def _packed_conv(c: Compiler, step: Step, window: Window) -> packing.Packed:
    x, _, zx, w, _, zw = step.inputs[:6]
    bias = step.inputs[8] if len(step.inputs) > 8 else ABSENT
    zero, signed, shape = _number(c, zx), c.dtype(x) == np.int8, packing.geometry(window)

    def make() -> packing.Packed:
        levels, off = c.known(w), c.known(zw)
        assert levels is not None
        if off is not None and off.any():
            levels = levels.astype(np.int16) - off.astype(np.int16).reshape(-1, *(1,) * (levels.ndim - 1))
        return packing.conv_u8(levels, c.known(bias), shape, step.node.get("group", 1), zero, signed)

    return c.packer.get((w, bias, zero, signed, shape), make)


def result_channels_last(c: Compiler, slot: int) -> View:
    return c.result(slot, channels_last(len(c.shape(slot))))


# --- element by element -----------------------------------------------------------------------------------------------


def add(c: Compiler, step: Step) -> bool:
    a, _, _, b = step.inputs[:4]
    y = step.outputs[0]
    scalars = [*step.inputs[1:3], *step.inputs[4:]]
    if c.shape(a) != c.shape(b) or not all(_one(c.known(s)) and (s == ABSENT or c.trace.is_known(s)) for s in scalars):
        return False
    if c.trace.is_known(a) or c.trace.is_known(b):
        return False
    left = c.gapless(a)
    assert left.order is not None
    right = c.ordered(b, left.order)
    c.emit(
        "add_u8", c.result_like(y, left), left, right, in_place=(1, 2), count=left.array.size, sum=_sum_factors(c, step)
    )
    return True


def _sum_factors(c: Compiler, step: Step) -> dict[str, Any]:
    """`struct pumice_add_u8` of a QLinearAdd."""
    sa, sb, sy = (np.float32(np.asarray(c.known(step.inputs[i])).reshape(())) for i in (1, 4, 6))
    za, zb, zy = (np.float32(_number(c, s)) for s in (step.inputs[2], step.inputs[5], (*step.inputs, 0)[7]))
    by_a, by_b = sa / sy, sb / sy
    inner = np.float64(za) * np.float64(by_a) + np.float64(by_b * zb)  # one rounding, as a fused multiply-add
    signed = int(c.dtype(step.outputs[0]) == np.int8)
    return {"is_signed": signed, "by_a": by_a, "by_b": by_b, "offset": np.float32(zy - np.float32(inner))}


def look_up(c: Compiler, step: Step) -> bool:
    """A function of one level: computed for all 256 of them by the reference."""
    x, y = step.inputs[0], step.outputs[0]
    if not _all_known(c, step, 1) or c.dtype(x) not in BYTES or c.dtype(y) not in BYTES:
        return False
    given = c.gapless(x)
    _emit_table(c, c.result_like(y, given), given, _table(c, step, c.dtype(x)))
    return True


def _table(c: Compiler, step: Step, dtype: np.dtype[np.generic]) -> Array:
    assert step.op.forward is not None
    every = np.arange(256, dtype=np.uint8).view(dtype)
    others = [c.known(slot) for slot in step.inputs[1:]]
    return np.asarray(step.op.forward(step.node, every, *others)[0])


def _emit_table(c: Compiler, target: View, given: View, table: Array) -> None:
    c.emit("look_up", target, given, in_place=(1,), count=given.array.size, table=table.view(np.uint8).tolist())


def multiply(c: Compiler, step: Step) -> bool:
    """By a constant level: a table."""
    b = step.inputs[3]
    if not c.trace.is_known(b) or math.prod(c.shape(b)) != 1 or not _all_known(c, step, 1):
        return False
    return look_up(c, step)


def concat(c: Compiler, step: Step) -> bool:
    """Each part requantized by a table, unless its parameters are those of the result."""
    from pumice.ops.quantize import quantize

    if not _all_known(c, step, len(step.inputs)):
        return False
    sy, zy, *rest = step.inputs
    triples = list(zip(rest[::3], rest[1::3], rest[2::3], strict=True))
    if not all(c.trace.is_known(s) for s in (sy, zy, *(p for t in triples for p in t[1:]))):
        return False
    scale, zero = c.known(sy), c.known(zy)
    assert scale is not None
    assert zero is not None
    parts, order = [], common_order(c, [x for x, _, _ in triples])
    for x, sx, zx in triples:
        part, own_scale, own_zero = c.ordered(x, order), c.known(sx), c.known(zx)
        assert own_scale is not None
        assert own_zero is not None
        if own_scale != scale or own_zero != zero:
            every = np.arange(256, dtype=np.uint8).view(c.dtype(x))
            real = (every.astype(np.int32) - own_zero.astype(np.int32)).astype(np.float32) * own_scale
            moved = fresh(part.shape, part.dtype, order)
            _emit_table(c, moved, part, quantize(real, scale, zero, zero.dtype))
            part = moved
        parts.append(part)
    join(c, step.outputs[0], parts, step.node.attributes["axis"] % len(order), order)
    return True


# --- pools ------------------------------------------------------------------------------------------------------------


def global_average(c: Compiler, step: Step) -> bool:
    x, y = step.inputs[0], step.outputs[0]
    if not _all_known(c, step, 1) or step.node.get("channels_last", 0) or c.dtype(x) not in BYTES:
        return False
    sx, sy = (np.float32(np.asarray(c.known(step.inputs[i])).reshape(())) for i in (1, 3))
    count = math.prod(c.shape(x)[2:])
    mean(
        c, x, y, _number(c, step.inputs[2]), _number(c, step.inputs[4]), multiplier=float(sx / (sy * np.float32(count)))
    )
    return True


def mean(
    c: Compiler, x: int, y: int, zero: int, result_zero: int = 0, *, multiplier: float = 0.0, scale: float = 0.0
) -> None:
    """The mean of every channel, as levels (`multiplier`) or real numbers (`scale`), both of the sum."""
    given = c.channels_last(x)
    batch, channels, *size = given.shape
    c.emit(
        "mean_u8", c.result(y), given, batch=batch, positions=math.prod(size), channels=channels,
        is_signed=int(given.dtype == np.int8), zero_point=zero, result_zero_point=result_zero,
        multiplier=multiplier, scale=scale,
    )  # fmt: skip


# --- to levels and back -----------------------------------------------------------------------------------------------


def _parameters(c: Compiler, step: Step, shape: tuple[int, ...]) -> tuple[Array, Array, int, int, int] | None:
    """Scales, zero points, and the axes before, of and after the scales."""
    scale = c.known(step.inputs[1])
    given = step.inputs[2] if len(step.inputs) > 2 else ABSENT
    if (
        scale is None
        or scale.dtype != np.float32
        or step.node.get("block_size", 0)
        or (given and not c.trace.is_known(given))
    ):
        return None
    zero = c.known(given)
    scales = np.ascontiguousarray(scale.reshape(-1))
    zeros = np.zeros(scales.size, np.int32) if zero is None else np.ascontiguousarray(zero.reshape(-1), np.int32)
    if scales.size == 1:
        return scales, zeros, 1, 1, math.prod(shape)
    axis = step.node.get("axis", 1) % len(shape)
    return scales, zeros, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def quantize_linear(c: Compiler, step: Step) -> bool:
    """Images (N, C, ...) become channels last on the way, if a convolution reads them."""
    x, y = step.inputs[0], step.outputs[0]
    found = _parameters(c, step, c.shape(x))
    if found is None or not c.is_float(x) or c.dtype(y) not in BYTES:
        return False
    scales, zeros, outer, axis, inner = found
    signed, shape, given = int(c.dtype(y) == np.int8), c.shape(x), c.gapless(x)
    reader = c.readers.get(y)
    image = reader is not None and reader.node.op_type == "QLinearConv" and len(shape) > 2 and shape[1] > 1
    if axis == 1 and image and given.is_plain:
        c.emit(
            "quantize_image", result_channels_last(c, y), given, batch=shape[0], channels=shape[1],
            positions=math.prod(shape[2:]), scale=float(scales[0]), zero=int(zeros[0]), is_signed=signed,
        )  # fmt: skip
        return True
    given = given if axis == 1 else c.plain(x)
    c.emit(
        "quantize", c.result_like(y, given), given, outer=outer, axis=axis, inner=inner, scale=scales, zero=zeros,
        is_signed=signed,
    )  # fmt: skip
    return True


def dequantize_linear(c: Compiler, step: Step) -> bool:
    """With a GlobalAveragePool behind it, the sum of the levels is what is made real."""
    x, y = step.inputs[0], step.outputs[0]
    found = _parameters(c, step, c.shape(x))
    if found is None or not c.is_float(y) or c.dtype(x) not in BYTES:
        return False
    scales, zeros, outer, axis, inner = found
    reader = c.reader(y)
    if reader is not None and reader.node.op_type == "GlobalAveragePool" and axis == 1 and c.view(x).is_channels_last:
        c.absorb(reader)
        mean(c, x, reader.outputs[0], int(zeros[0]), scale=float(scales[0]) / math.prod(c.shape(x)[2:]))
        return True
    given = c.gapless(x) if axis == 1 else c.plain(x)
    c.emit(
        "dequantize", c.result_like(y, given), given, outer=outer, axis=axis, inner=inner, scale=scales, zero=zeros,
        is_signed=int(c.dtype(x) == np.int8),
    )  # fmt: skip
    return True


LOWERS = {
    ("", "QLinearConv"): conv,
    (MS, "QLinearAdd"): add,
    (MS, "QLinearMul"): multiply,
    (MS, "QLinearSigmoid"): look_up,
    (MS, "QLinearLeakyRelu"): look_up,
    (MS, "QLinearConcat"): concat,
    (MS, "QLinearGlobalAveragePool"): global_average,
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
}
