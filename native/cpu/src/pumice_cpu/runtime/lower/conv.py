"""Convolutions of real numbers, channels first, with what follows them: normalisation, residual sum, activation."""

from __future__ import annotations

import math

import attrs
import numpy as np

from pumice.ops.conv import adjoint_window
from pumice.ops.record import Array
from pumice.ops.window import Window
from pumice.program import ABSENT, Step
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler

MOST_AXES = 3


@attrs.define
class Tail:
    """What happens to a sum before it is stored, and the value that it becomes: y = clamp(sum + residual)."""

    slot: int
    residual: int = ABSENT
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_bounded(self) -> bool:
        return self.low > -math.inf or self.high < math.inf


def bounds(c: Compiler, step: Step) -> tuple[float, float] | None:
    """Of a Relu or a Clip with constant bounds."""
    if step.node.op_type == "Relu":
        return 0.0, math.inf
    if step.node.op_type != "Clip":
        return None
    low, high = step.node.get("min", -math.inf), step.node.get("max", math.inf)
    given = [slot for slot in step.inputs[1:] if slot != ABSENT]
    if any(c.scalar(slot) is None for slot in given):
        return None
    if len(step.inputs) > 1 and step.inputs[1] != ABSENT:
        low = c.scalar(step.inputs[1])
    if len(step.inputs) > 2 and step.inputs[2] != ABSENT:
        high = c.scalar(step.inputs[2])
    return float(low), float(high)


def follow(c: Compiler, slot: int) -> Tail:
    """Absorb a residual sum and bounds behind a value, as far as nobody else reads what is between."""
    tail = Tail(slot)
    while (step := c.reader(tail.slot)) is not None:
        found = bounds(c, step)
        if found is not None and step.inputs[0] == tail.slot and not tail.is_bounded:
            tail.low, tail.high = found
        elif step.node.op_type == "Add" and tail.residual == ABSENT and not tail.is_bounded:
            other = step.inputs[1] if step.inputs[0] == tail.slot else step.inputs[0]
            if other == tail.slot or not c.has_view(other) or c.shape(other) != c.shape(tail.slot):
                break
            tail.residual = other
        else:
            break
        c.absorb(step)
        tail.slot = step.outputs[0]
    return tail


def conv(c: Compiler, step: Step) -> bool:
    x, w = step.inputs[:2]
    bias = c.known(step.inputs[2]) if len(step.inputs) > 2 and step.inputs[2] != ABSENT else None
    if not _fits(c, step):
        return False
    shape = packing.geometry(Window.of(step.node, c.shape(x)[2:], c.shape(w)[2:]))
    slot, factor, shift = _normalisation(c, step.outputs[0])
    if factor is not None:
        bias = shift if bias is None else bias * factor + shift

    def make() -> packing.Packed:
        weights = c.known(w)
        assert weights is not None
        if factor is not None:
            weights = weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
        return packing.conv_f32(weights, shape, c.shape(x)[1], step.node.get("group", 1), False)

    _emit(c, step, slot, c.packer.get((w, slot, shape), make), bias)
    return True


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
    tail = follow(c, slot)
    x = c.plain(step.inputs[0])
    residual = None if tail.residual == ABSENT else c.plain(tail.residual)
    biases = None if bias is None else np.ascontiguousarray(bias, np.float32)
    c.emit(
        "conv_f32", c.result(tail.slot), x, residual, conv=packed, batch=x.shape[0], op=step.node.op_type,
        epilogue={"bias": biases, "low": tail.low, "high": tail.high},
    )  # fmt: skip


LOWERS = {("", "Conv"): conv, ("", "ConvTranspose"): conv_transpose}
