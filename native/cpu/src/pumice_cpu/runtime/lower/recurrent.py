"""LSTM and GRU, and the LSTM with 8-bit weights.

The products of the input for all steps are one matrix product, the loop over time is one call.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pumice.ops.record import Array, Node
from pumice.program import ABSENT, Step
from pumice_cpu.gemm import TYPES
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler, Lower
from pumice_cpu.runtime.lower.products import quantized
from pumice_cpu.runtime.views import View, fresh

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}
STATE_ZERO, STATE_SCALE = 128, 1 / 127
"""Of a state with a fixed scale: see csrc/runtime/steps_recurrent.c."""
DEFAULTS = {"lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"]}


def _lower(cell: Cell) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        x, w, r, b, lengths = (*step.inputs, *[ABSENT] * 8)[:5]
        if not _is_default(cell, step.node) or not c.is_float(x) or c.known(w) is None or c.known(r) is None:
            return False
        if (b != ABSENT and c.known(b) is None) or (lengths != ABSENT and c.dtype(lengths) != np.int32):
            return False
        _Layer(c, step, cell).emit()
        return True

    return lower


def _is_default(cell: Cell, node: Node) -> bool:
    names = [name.lower() for name in node.get("activations") or ()]
    plain = names in ([], DEFAULTS[cell], DEFAULTS[cell] * 2)
    return plain and not (node.get("clip") or node.get("input_forget") or node.get("layout"))


class _Layer:
    """One node: its memory, and the instructions of its directions."""

    def __init__(self, c: Compiler, step: Step, cell: Cell, *, transposed: bool = False) -> None:
        self.c, self.step, self.cell = c, step, cell
        self.x, self.w, self.r, self.b, self.lengths, self.first_h, self.first_c, self.peepholes = (
            *step.inputs, *[ABSENT] * 8
        )[:8]  # fmt: skip
        self.linear = int(step.node.get("linear_before_reset", 0))
        self.time, self.batch, self.depth = c.shape(self.x)
        self.directions, *sides = c.shape(self.r)
        self.hidden, self.width = sides if transposed else sides[::-1]

    def emit(self) -> None:
        c, outputs = self.c, (*self.step.outputs, ABSENT, ABSENT)
        shapes = (
            (self.time, self.directions, self.batch, self.hidden),
            *[(self.directions, self.batch, self.hidden)] * 2,
        )
        given = c.plain(self.x)
        y, h, cell = (
            c.result(slot) if slot != ABSENT else fresh(shape, np.float32)
            for slot, shape in zip(outputs[:3], shapes, strict=True)
        )
        self._begin(h, self.first_h)
        if self.cell == "lstm":
            self._begin(cell, self.first_c)
        for direction in range(self.directions):
            self._run(direction, given, y, h, cell)

    def _begin(self, state: View, initial: int) -> None:
        if initial == ABSENT:
            self.c.emit("fill", state, bytes=state.array.nbytes)
        else:
            self.c.emit("copy", state, self.c.plain(initial), rows=1, bytes=state.array.nbytes)

    def _run(self, direction: int, x: View, y: View, h: View, cell: View) -> None:
        c, projected = self.c, fresh((self.time * self.batch, self.width), np.float32)
        outer, inner = self._biases(direction)
        self._project(direction, x, projected, outer)
        c.emit(
            "recurrent", _part(y, (slice(None), direction)), projected, _part(h, direction),
            _part(cell, direction) if self.cell == "lstm" else None, self._lengths(), writes=(0, 2, 3),
            recurrence={
                "gru": int(self.cell == "gru"), "linear_before_reset": self.linear, "inner_bias": inner,
                **self._recurrent_weights(direction), **self._geometry(direction),
            },
        )  # fmt: skip

    def _geometry(self, direction: int) -> dict[str, Any]:
        peepholes = self.c.known(self.peepholes)
        return {
            "time": self.time, "batch": self.batch, "hidden": self.hidden,
            "y_stride": self.directions * self.batch * self.hidden,
            "reverse": int(direction == 1 or self.step.node.get("direction", "forward") == "reverse"),
            "peepholes": None if peepholes is None else np.ascontiguousarray(peepholes[direction], np.float32),
        }  # fmt: skip

    def _project(self, direction: int, x: View, projected: View, bias: Array | None) -> None:
        self.c.emit(
            "gemm", projected, x, None, weights=self._packed("w", direction, 0, self.width), y_stride=self.width,
            a={"type": TYPES["float32"], "rows": self.time * self.batch, "columns": self.depth,
               "row_stride": self.depth, "column_stride": 1},
            epilogue={"output": TYPES["float32"], "bias": bias},
        )  # fmt: skip

    def _recurrent_weights(self, direction: int) -> dict[str, packing.Packed]:
        if self.cell == "lstm":
            return {"recurrent": self._packed("r", direction, 0, self.width)}
        split = 2 * self.hidden
        return {
            "recurrent": self._packed("r", direction, 0, split),
            "candidate": self._packed("r", direction, split, self.width),
        }

    def _packed(self, which: Literal["w", "r"], direction: int, first: int, last: int) -> packing.Packed:
        slot = self.w if which == "w" else self.r

        def make() -> packing.Packed:
            weights = self.c.known(slot)
            assert weights is not None
            return packing.matrix(np.asarray(weights[direction, first:last], np.float32).T, "float")

        return self.c.packer.get((slot, direction, first, last), make)

    def _lengths(self) -> View | None:
        known = self.c.known(self.lengths)
        if self.lengths == ABSENT or (known is not None and (known >= self.time).all()):
            return None
        return self.c.plain(self.lengths)

    def _biases(self, direction: int) -> tuple[Array | None, Array | None]:
        """What is added to the projected input, and what a GRU adds to the candidate before its reset."""
        stored = self.c.known(self.b)
        if stored is None:
            return None, None
        bias: Any = np.asarray(stored[direction], np.float32)
        outer = bias[: self.width] + bias[self.width :]
        if not self.linear:
            return outer, None
        outer[2 * self.hidden :] = bias[2 * self.hidden : self.width]
        return outer, np.ascontiguousarray(bias[self.width + 2 * self.hidden :])


def _part(view: View, index: Any) -> View:
    return View(view.root, view.array[index])


# --- 8-bit weights ----------------------------------------------------------------------------------------------------


def dynamic_lstm(c: Compiler, step: Step) -> bool:
    """ONNX Runtime's DynamicQuantizeLSTM; in fast mode the state has a fixed scale, every row of the input its own."""
    x, w, r, b, lengths, *_ = (*step.inputs, *[ABSENT] * 12)[:12]
    given = [slot for slot in (w, r, b, *step.inputs[7:12]) if slot != ABSENT]
    if not _is_default("lstm", step.node) or not c.is_float(x) or not all(map(c.trace.is_known, given)):
        return False
    layer = _DynamicLayer(c, step, "lstm", transposed=True)
    if lengths != ABSENT and layer.reads_lengths:
        return False
    layer.emit()
    return True


class _DynamicLayer(_Layer):
    """Weights transposed, as levels."""

    @property
    def reads_lengths(self) -> bool:
        known = self.c.known(self.lengths)
        return known is None or bool((known < self.time).any())

    def _run(self, direction: int, x: View, y: View, h: View, cell: View) -> None:
        c, projected, fixed = self.c, fresh((self.time * self.batch, self.width), np.float32), not self.c.exact
        scale, zero = self._parameters(10, direction)
        outer, _ = self._biases(direction)
        if fixed:
            outer = self._without_zero_point(direction, scale, zero, outer)
        self._project(direction, x, projected, outer)
        c.emit(
            "lstm_u8", _part(y, (slice(None), direction)), projected, _part(h, direction), _part(cell, direction),
            writes=(0, 2, 3), recurrent=self._levels("r", direction), scale=scale, scale_step=int(scale.size > 1),
            zero=zero, fixed=int(fixed), **self._geometry(direction),
        )  # fmt: skip

    def _project(self, direction: int, x: View, projected: View, bias: Array | None) -> None:
        c, (scale, zero) = self.c, self._parameters(8, direction)
        levels = quantized(c, self.x, by_row=not c.exact)
        c.emit(
            "dynamic", projected, levels.values, levels.scale, levels.zero, None, weights=self._levels("w", direction),
            rows=self.time * self.batch, depth=self.depth, columns=self.width, scale_step=int(scale.size > 1),
            scale=scale, b_zero=zero, epilogue={"output": TYPES["float32"], "bias": bias}, y_stride=self.width,
        )  # fmt: skip

    def _parameters(self, first: int, direction: int) -> tuple[Array, Array | None]:
        """Scales of a direction's columns, or one, and their zero points if there are any."""
        scale, zero = self.c.known(self.step.inputs[first]), self.c.known(self.step.inputs[first + 1])
        assert scale is not None
        scales = np.ascontiguousarray(scale.reshape(self.directions, -1)[direction], np.float32)
        if zero is None or not zero.any():
            return scales, None
        zeros = zero.reshape(self.directions, -1)[direction]
        return scales, np.ascontiguousarray(np.broadcast_to(zeros, (self.width,)), np.int32)

    def _levels(self, which: Literal["w", "r"], direction: int) -> packing.Packed:
        slot = self.w if which == "w" else self.r

        def make() -> packing.Packed:
            weights = self.c.known(slot)
            assert weights is not None
            return packing.matrix(weights[direction], "integer")

        return self.c.packer.get((slot, direction, "integer"), make)

    def _without_zero_point(self, direction: int, scale: Array, zero: Array | None, bias: Array | None) -> Array:
        """The bias less what the state's zero point adds to every sum."""
        weights = self.c.known(self.r)
        assert weights is not None
        sums = weights[direction].astype(np.int64).sum(axis=0) - (
            0 if zero is None else zero.astype(np.int64) * self.hidden
        )
        shift = STATE_ZERO * STATE_SCALE * scale.astype(np.float64) * sums
        return np.asarray((0 if bias is None else bias) - shift, np.float32)


LOWERS: dict[tuple[str, str], Lower] = {
    ("", "LSTM"): _lower("lstm"),
    ("", "GRU"): _lower("gru"),
    ("com.microsoft", "DynamicQuantizeLSTM"): dynamic_lstm,
}
