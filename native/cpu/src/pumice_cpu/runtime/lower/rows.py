"""Functions of several real numbers: two by two, along rows, over axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pumice.program import ABSENT, Step
from pumice_cpu.rows import FUNCTIONS, OPERATIONS, REDUCTIONS
from pumice_cpu.runtime.compiler import Compiler, Lower
from pumice_cpu.runtime.lower.activations import emit_map
from pumice_cpu.runtime.views import View

BINARY_AXES = 4

# --- two operands -----------------------------------------------------------------------------------------------------


def _binary(operation: str) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        a, b = step.inputs
        return c.is_float(a, b) and emit_binary(c, operation, a, b, step.outputs[0])

    return lower


def emit_binary(c: Compiler, operation: str, a: int, b: int, y: int) -> bool:
    """Operands are read where they lie if their broadcast merges to four axes, else copied into C order."""
    left, right = c.view(a), c.view(b)
    order = left.order if left.shape == c.shape(y) and left.order else tuple(range(len(c.shape(y))))
    merged = _merged(c.shape(y), order, left, right)
    if merged is None:
        left, right, order = c.plain(a), c.plain(b), tuple(range(len(c.shape(y))))
        merged = _merged(c.shape(y), order, left, right)
    if merged is None:
        return False
    shape, (a_steps, b_steps) = merged
    same = [i for i, v in ((1, left), (2, right)) if v.shape == c.shape(y) and v.order == order]
    c.emit(
        "binary", c.result(y, order), left, right, in_place=same, operation=OPERATIONS[operation], shape=shape,
        a_steps=a_steps, b_steps=b_steps,
    )  # fmt: skip
    return True


def _merged(
    shape: tuple[int, ...], order: tuple[int, ...], *operands: View
) -> tuple[list[int], list[list[int]]] | None:
    """Shape and steps over four axes; None if it takes more, or an operand's last axis has gaps."""
    spread = [np.broadcast_to(v.array, shape).transpose(order) for v in operands]
    joined: list[list[int]] = []
    for axis, extent in enumerate(spread[0].shape):
        if extent == 1:
            continue
        steps = [s.strides[axis] // s.itemsize for s in spread]
        if joined and all(p == q * extent for p, q in zip(joined[-1][1:], steps, strict=True)):
            joined[-1] = [joined[-1][0] * extent, *steps]
        else:
            joined.append([extent, *steps])
    if len(joined) > BINARY_AXES or (joined and any(step > 1 for step in joined[-1][1:])):
        return None
    joined = [[1] + [0] * len(operands)] * (BINARY_AXES - len(joined)) + joined
    return [j[0] for j in joined], [[j[i + 1] for j in joined] for i in range(len(operands))]


def _where(c: Compiler, step: Step) -> bool:
    condition, a, b = (c.plain(slot) for slot in step.inputs)
    y = step.outputs[0]
    merged = _merged(c.shape(y), tuple(range(len(c.shape(y)))), condition, a, b)
    if merged is None or a.dtype == object:
        return False
    shape, (c_steps, a_steps, b_steps) = merged
    c.emit(
        "where", c.result(y), condition, a, b, size=a.dtype.itemsize, shape=shape, c_steps=c_steps, a_steps=a_steps,
        b_steps=b_steps,
    )  # fmt: skip
    return True


def _power(c: Compiler, step: Step) -> bool:
    """Squares and roots."""
    x, exponent = step.inputs
    if not c.is_float(x):
        return False
    if c.scalar(exponent) == 2.0:
        return emit_binary(c, "mul", x, x, step.outputs[0])
    return c.scalar(exponent) == 0.5 and emit_map(c, x, step.outputs[0], "sqrt")


# --- rows -------------------------------------------------------------------------------------------------------------


def _softmax(logarithm: bool) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        x, rank = step.inputs[0], len(c.shape(step.inputs[0]))
        axis = step.node.get("axis", -1 if step.node.opset >= 13 else 1) % rank
        last = c.shape(x)[axis:] if step.node.opset < 13 else c.shape(x)[axis : axis + 1]
        if not c.is_float(x) or (step.node.opset >= 13 and axis != rank - 1):
            return False
        given, columns = c.plain(x), math.prod(last)
        c.emit(
            "softmax", c.result(step.outputs[0]), given, in_place=(1,), rows=given.array.size // columns,
            columns=columns, logarithm=int(logarithm),
        )  # fmt: skip
        return True

    return lower


def _vector(c: Compiler, slot: int) -> Any:
    value = c.known(slot)
    return None if value is None else np.ascontiguousarray(value.reshape(-1), np.float32)


def _layer_norm(c: Compiler, step: Step) -> bool:
    x, scale = step.inputs[:2]
    bias = step.inputs[2] if len(step.inputs) > 2 else ABSENT
    columns = math.prod(c.shape(x)[step.node.get("axis", -1) % len(c.shape(x)) :])
    vectors = [_vector(c, scale), _vector(c, bias)]
    if not c.is_float(x) or vectors[0] is None or (bias != ABSENT and vectors[1] is None) or any(step.outputs[1:]):
        return False
    if any(v is not None and v.size != columns for v in vectors):
        return False
    given = c.plain(x)
    c.emit(
        "layer_norm", c.result(step.outputs[0]), given, in_place=(1,), rows=given.array.size // columns,
        columns=columns, scale=vectors[0], bias=vectors[1], epsilon=step.node.get("epsilon", 1e-5),
        rms=int(step.node.op_type == "RMSNormalization"),
    )  # fmt: skip
    return True


def _batch_norm(c: Compiler, step: Step) -> bool:
    x = step.inputs[0]
    stored = [_vector(c, slot) for slot in step.inputs[1:5]]
    if (
        not c.is_float(x)
        or any(s is None for s in stored)
        or any(step.outputs[1:])
        or step.node.get("training_mode", 0)
    ):
        return False
    given = c.plain(x)
    channels = given.shape[1] if len(given.shape) > 1 else 1
    scale, bias, mean, var = stored
    c.emit(
        "batch_norm", c.result(step.outputs[0]), given, in_place=(1,), batch=given.shape[0], channels=channels,
        inner=math.prod(given.shape[2:]), scale=scale, bias=bias, mean=mean, var=var,
        epsilon=step.node.get("epsilon", 1e-5),
    )  # fmt: skip
    return True


# --- reductions -------------------------------------------------------------------------------------------------------


def _reduce(reduction: str, finish: Callable[[Compiler, int], None] | None = None) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        axes = _axes(c, step)
        if axes is None or not c.is_float(step.inputs[0]):
            return False
        given = c.plain(step.inputs[0])
        shape = given.shape
        c.emit(
            "reduce", c.result(step.outputs[0]), given, reduction=REDUCTIONS[reduction],
            outer=math.prod(shape[: axes[0]]), reduced=math.prod(shape[axes[0] : axes[-1] + 1]),
            inner=math.prod(shape[axes[-1] + 1 :]),
        )  # fmt: skip
        if finish is not None:
            finish(c, step.outputs[0])
        return True

    return lower


def _extreme_index(least: bool) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        if not c.is_float(step.inputs[0]):
            return False
        given = c.plain(step.inputs[0])
        axis = step.node.get("axis", 0) % len(given.shape)
        c.emit(
            "extreme_index", c.result(step.outputs[0]), given, outer=math.prod(given.shape[:axis]),
            size=given.shape[axis], inner=math.prod(given.shape[axis + 1 :]), least=int(least),
            last=int(step.node.get("select_last_index", 0)),
        )  # fmt: skip
        return True

    return lower


def _axes(c: Compiler, step: Step) -> list[int] | None:
    """Neighbouring axes that are reduced, or None."""
    rank = len(c.shape(step.inputs[0]))
    axes = step.node.get("axes")
    if len(step.inputs) > 1 and step.inputs[1] != ABSENT:
        axes = (c.known(step.inputs[1]),)[0]
    if axes is None or len(axes) == 0:
        axes = None if step.node.get("noop_with_empty_axes", 0) else range(rank)
    found = [] if axes is None else sorted(int(a) % rank for a in axes)
    return found if found and found == list(range(found[0], found[-1] + 1)) else None


def _root(c: Compiler, slot: int) -> None:
    view = c.view(slot)
    c.emit("map", view, view, function=FUNCTIONS["sqrt"], count=view.array.size, parameters=[0.0, 0.0, 0.0])


LOWERS: dict[tuple[str, str], Lower] = {
    **{("", name): _binary(name.lower()) for name in ("Add", "Sub", "Mul", "Div")},
    ("", "Pow"): _power,
    ("", "Where"): _where,
    ("", "ArgMax"): _extreme_index(least=False),
    ("", "ArgMin"): _extreme_index(least=True),
    ("", "Softmax"): _softmax(False),
    ("", "LogSoftmax"): _softmax(True),
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _layer_norm,
    ("", "SimplifiedLayerNormalization"): _layer_norm,
    ("", "BatchNormalization"): _batch_norm,
    ("", "ReduceSum"): _reduce("sum"),
    ("", "ReduceMean"): _reduce("mean"),
    ("", "ReduceMax"): _reduce("max"),
    ("", "ReduceMin"): _reduce("min"),
    ("", "ReduceSumSquare"): _reduce("sum_square"),
    ("", "ReduceL2"): _reduce("sum_square", _root),
}
