"""Convolutions of real numbers with what follows them: normalisation, residual sum, activation.

Images have their channels last in memory, as the products of `pumice_cpu.nhwc` read and write them. Three spatial axes,
groups of several channels and transposed convolutions have them first.

A product's operands may be split (`pumice_cpu.nhwc`), but not in exact mode where levels are made of real numbers,
which must fall on ONNX Runtime's side of a boundary.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from pumice.ops.conv import adjoint_window
from pumice.ops.record import Array
from pumice.ops.window import Window
from pumice.program import ABSENT, Step
from pumice_cpu import nhwc
from pumice_cpu.rows import FUNCTIONS
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler
from pumice_cpu.runtime.lower.activations import Named, bounds, function_of, padded
from pumice_cpu.runtime.views import View, channels_last

MOST_AXES = 3
FEW_CHANNELS = 16
"""Of images that are read as they lie."""


@attrs.define
class Tail:
    """What happens to a sum before it is stored, and the value that it becomes.

    y = clamp(sum + residual), or f(sum + residual), or with `late` f(sum) + residual.
    """

    slot: int
    residual: int = ABSENT
    low: float = -math.inf
    high: float = math.inf
    function: Named | None = None
    late: bool = False

    @property
    def is_activated(self) -> bool:
        return self.function is not None or self.low > -math.inf or self.high < math.inf


def follow(c: Compiler, slot: int, *, functions: bool) -> Tail:
    """Absorb a residual sum and an activation behind a value, as far as nobody else reads what is between.

    Without `functions` the activation is a clamp, and the last.
    """
    tail = Tail(slot)
    while (step := c.reader(tail.slot)) is not None and _take(c, tail, step, functions):
        c.absorb(step)
        tail.slot = step.outputs[0]
    return tail


def _take(c: Compiler, tail: Tail, step: Step, functions: bool) -> bool:
    if step.node.op_type == "Add" and tail.residual == ABSENT and (functions or not tail.is_activated):
        other = step.inputs[1] if step.inputs[0] == tail.slot else step.inputs[0]
        if other == tail.slot or not c.has_view(other) or c.shape(other) != c.shape(tail.slot):
            return False
        tail.residual, tail.late = other, tail.is_activated
        return True
    if tail.is_activated or step.inputs[0] != tail.slot:
        return False
    found = bounds(c, step)
    if found is not None:
        tail.low, tail.high = found
        return tail.is_activated
    tail.function = function_of(step) if functions else None
    return tail.function is not None


def conv(c: Compiler, step: Step) -> bool:
    x, w = step.inputs[:2]
    bias = c.known(step.inputs[2]) if len(step.inputs) > 2 and step.inputs[2] != ABSENT else None
    if not _fits(c, step):
        return False
    shape = packing.geometry(Window.of(step.node, c.shape(x)[2:], c.shape(w)[2:]))
    slot, factor, shift = _normalisation(c, step.outputs[0])
    if factor is not None:
        bias = shift if bias is None else bias * factor + shift
    groups, last = step.node.get("group", 1), _can_be_last(c, step)

    def make() -> packing.Packed:
        weights = c.known(w)
        assert weights is not None
        if factor is not None:
            weights = weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
        if last:
            return packing.nhwc(weights, shape, groups, c.exact and c.quantizes)
        return packing.conv_f32(weights, shape, c.shape(x)[1], groups, False)

    (_emit_last if last else _emit)(c, step, slot, c.packer.get((w, slot, shape), make), bias)
    return True


def _can_be_last(c: Compiler, step: Step) -> bool:
    filters, each, *kernel = c.shape(step.inputs[1])
    groups = step.node.get("group", 1)
    return len(kernel) <= nhwc.MOST_AXES and (groups == 1 or (groups == filters and each == 1))


def _emit_last(c: Compiler, step: Step, slot: int, packed: packing.Packed, bias: Array | None) -> None:
    tail = follow(c, slot, functions=True)
    function, parameters = (-1, ()) if tail.function is None else (FUNCTIONS[tail.function[0]], tail.function[1])
    given = step.inputs[0]
    x = c.view(given) if c.shape(given)[1] < FEW_CHANNELS else c.channels_last(given)
    residual = None if tail.residual == ABSENT else c.channels_last(tail.residual)
    c.emit(
        "nhwc", c.result(tail.slot, channels_last(len(x.shape))), x, residual, conv=packed, batch=x.shape[0],
        x_steps=_image_steps(x, c.shape(step.inputs[1])[2:], c.shape(slot)[2:]), op=step.node.op_type,
        epilogue={
            "bias": None if bias is None else np.ascontiguousarray(bias, np.float32), "late": int(tail.late),
            "function": function, "parameters": np.array(padded(parameters), np.float32), "low": tail.low,
            "high": tail.high, "y_step": 0,
        },
    )  # fmt: skip


def _image_steps(x: View, kernel: tuple[int, ...], output: tuple[int, ...]) -> list[int]:
    """From one image, channel, row and column to the next; as `packing.nhwc` turns an image of one column."""
    batch, channel, *size = x.steps
    rows, columns = (0, *size)[-2:]
    return [batch, channel, *((columns, rows) if nhwc.is_upright(x.shape[2:], kernel, output) else (rows, columns))]


def conv_transpose(c: Compiler, step: Step) -> bool:
    x, w = step.inputs[:2]
    if not _fits(c, step):
        return False
    window, size = adjoint_window(step.node, c.shape(x)[2:], c.shape(w)[2:])
    turned = packing.geometry(attrs.evolve(window, size=window.output, output=tuple(size)))

    def make() -> packing.Packed:
        weights = c.known(w)
        assert weights is not None
        return packing.conv_f32(weights, turned, c.shape(x)[1], step.node.get("group", 1), True)

    bias = c.known(step.inputs[2]) if len(step.inputs) > 2 else None
    _emit(c, step, step.outputs[0], c.packer.get((w, turned), make), bias)
    return True


def _fits(c: Compiler, step: Step) -> bool:
    x, w = step.inputs[:2]
    given = [slot for slot in step.inputs[1:] if slot != ABSENT]
    return c.is_float(x, w) and all(map(c.trace.is_known, given)) and 0 < len(c.shape(x)) - 2 <= MOST_AXES


def _normalisation(c: Compiler, slot: int) -> tuple[int, Array | None, Array | None]:
    """A BatchNormalization behind a convolution, as factor and shift of its filters."""
    step = c.reader(slot)
    if step is None or step.node.op_type != "BatchNormalization" or step.node.get("training_mode", 0):
        return slot, None, None
    stored = [c.known(s) for s in step.inputs[1:5]]
    if any(s is None for s in stored) or any(s != ABSENT for s in step.outputs[1:]):
        return slot, None, None
    scale, bias, mean, var = (np.asarray(s, np.float64) for s in stored)
    factor = scale / np.sqrt(var + step.node.get("epsilon", 1e-5))
    c.absorb(step)
    return step.outputs[0], factor.astype(np.float32), (bias - mean * factor).astype(np.float32)


def _emit(c: Compiler, step: Step, slot: int, packed: packing.Packed, bias: Array | None) -> None:
    tail = follow(c, slot, functions=False)
    x = c.plain(step.inputs[0])
    residual = None if tail.residual == ABSENT else c.plain(tail.residual)
    biases = None if bias is None else np.ascontiguousarray(bias, np.float32)
    c.emit(
        "conv_f32", c.result(tail.slot), x, residual, conv=packed, batch=x.shape[0], op=step.node.op_type,
        epilogue={"bias": biases, "low": tail.low, "high": tail.high},
    )  # fmt: skip


LOWERS = {("", "Conv"): conv, ("", "ConvTranspose"): conv_transpose}
