"""LSTM and GRU, in floating point and with 8-bit weights.

The products of the input for all steps are one matrix product, the loop over time is one call.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np

from pumice.ops.record import Array, Node
from pumice.program import ABSENT, Step
from pumice_cpu.gemm import TYPES
from pumice_cpu.recurrent import SPLIT_BATCH, splits
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler, Levels as Quantized, Lower
from pumice_cpu.runtime.lower.products import quantized
from pumice_cpu.runtime.views import View, fresh

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}
DEFAULTS = {"lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"]}


def _lower(cell: Cell) -> Lower:
    def lower(c: Compiler, step: Step) -> bool:
        x, w, r, b, lengths = (*step.inputs, *[ABSENT] * 8)[:5]
        if not _is_default(cell, step.node) or not c.is_float(x) or c.known(w) is None or c.known(r) is None:
            return False
        if (b != ABSENT and c.known(b) is None) or (lengths != ABSENT and c.dtype(lengths) != np.int32):
            return False
        if cell == "lstm" or not stored_gru(c, step):
            _Layer(c, step, cell).emit()
        return True

    return lower


def _is_default(cell: Cell, node: Node) -> bool:
    names = [name.lower() for name in node.get("activations") or ()]
    plain = names in ([], DEFAULTS[cell], DEFAULTS[cell] * 2)
    return plain and not (node.get("clip") or node.get("input_forget") or node.get("layout"))


class _Layer:
    """One node: its memory, and the instructions of its directions."""

    def __init__(self, c: Compiler, step: Step, cell: Cell) -> None:
        self.c, self.step, self.cell = c, step, cell
        self.x, self.w, self.r, self.b, self.lengths, self.first_h, self.first_c, self.peepholes = (
            *step.inputs, *[ABSENT] * 8
        )[:8]  # fmt: skip
        self.linear = int(step.node.get("linear_before_reset", 0))
        self.time, self.batch, self.depth = c.shape(self.x)
        self.directions, self.width, self.hidden = c.shape(self.r)

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
                "weights": self._recurrent_weights(direction), "linear_before_reset": self.linear, "inner_bias": inner,
                **self._geometry(direction),
            },
        )  # fmt: skip

    def _geometry(self, direction: int) -> dict[str, Any]:
        peepholes = self.c.known(self.peepholes)
        return {
            "time": self.time, "batch": self.batch,
            "y_stride": self.directions * self.batch * self.hidden,
            "reverse": int(direction == 1 or self.step.node.get("direction", "forward") == "reverse"),
            "peepholes": None if peepholes is None else np.ascontiguousarray(peepholes[direction], np.float32),
        }  # fmt: skip

    def _project(self, direction: int, x: View, projected: View, bias: Array | None) -> None:
        self.c.emit(
            "gemm", projected, x, None, weights=self._input_weights(direction), y_stride=self.width,
            a={"type": TYPES["float32"], "rows": self.time * self.batch, "columns": self.depth,
               "row_stride": self.depth, "column_stride": 1},
            epilogue={"output": TYPES["float32"], "bias": bias},
        )  # fmt: skip

    def _recurrent_weights(self, direction: int) -> packing.Packed:
        split = splits(self.batch, SPLIT_BATCH)

        def make() -> packing.Packed:
            weights = self.c.known(self.r)
            assert weights is not None
            return packing.recurrent(np.asarray(weights[direction], np.float32), split)

        return self.c.packer.get((self.r, direction, split), make)

    def _input_weights(self, direction: int) -> packing.Packed:
        def make() -> packing.Packed:
            weights = self.c.known(self.w)
            assert weights is not None
            return packing.matrix(np.asarray(weights[direction], np.float32).T, "float")

        return self.c.packer.get((self.w, direction), make)

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

JOINT_BATCH = 8
"""Rows of a step from which its input is multiplied along with the state: sums of all steps would leave the caches."""


@attrs.frozen(eq=False)
class Levels:
    """Weights as integers, by direction: values (inputs, outputs), scales and zero points of the outputs."""

    slot: int
    """What tells them from others."""
    values: Array
    scale: Array
    zero: Array | None = None

    def parameters(self, direction: int) -> tuple[Array, Array | None]:
        """Scales of all outputs or one for all, and zero points if there are any."""
        count, *_, width = self.values.shape
        scale = np.ascontiguousarray(self.scale.reshape(count, -1)[direction], np.float32)
        if self.zero is None or not self.zero.any():
            return scale, None
        zero = self.zero.reshape(count, -1)[direction]
        return scale, np.ascontiguousarray(np.broadcast_to(zero, (width,)), np.int32)


def dynamic_lstm(c: Compiler, step: Step) -> bool:
    """ONNX Runtime's DynamicQuantizeLSTM; in fast mode every row of the input and of the state has its own scale."""
    x, w, r, b, lengths, *_ = (*step.inputs, *[ABSENT] * 12)[:12]
    given = [slot for slot in (w, r, b, *step.inputs[7:12]) if slot != ABSENT]
    if not _is_default("lstm", step.node) or not c.is_float(x) or not all(map(c.trace.is_known, given)):
        return False
    if lengths != ABSENT and c.dtype(lengths) != np.int32:
        return False
    ws, wz, rs, rz = (c.known(slot) for slot in (*step.inputs, *[ABSENT] * 4)[8:12])
    values = c.known(w), c.known(r)
    if values[0] is None or values[1] is None or ws is None or rs is None:
        return False
    _IntegerLayer(c, step, "lstm", Levels(w, values[0], ws, wz), Levels(r, values[1], rs, rz)).emit()
    return True


def stored_gru(c: Compiler, step: Step) -> bool:
    """In fast mode, a GRU whose weights the graph widens from 8 bits computes with the integers."""
    w, r = (_widened(c, slot) for slot in step.inputs[1:3])
    if c.exact or w is None or r is None or not step.node.get("linear_before_reset", 0):
        return False
    _IntegerLayer(c, step, "gru", w, r).emit()
    return True


def _widened(c: Compiler, slot: int) -> Levels | None:
    """Of Mul(Cast(integers), a scale an output), reshaped to (directions, outputs, inputs)."""
    step = c.producer(slot)
    while step is not None and step.node.op_type == "Reshape":
        step = c.producer(step.inputs[0])
    cast = None if step is None or step.node.op_type != "Mul" else c.producer(step.inputs[0])
    if step is None or cast is None or cast.node.op_type != "Cast":
        return None
    integers, scale, shape = c.known(cast.inputs[0]), c.known(step.inputs[1]), c.shape(slot)
    if integers is None or integers.dtype != np.int8 or scale is None or scale.size != shape[0] * shape[1]:
        return None
    return Levels(slot, integers.reshape(shape).transpose(0, 2, 1), scale.reshape(shape[:2]))


class _IntegerLayer(_Layer):
    """Weights as levels; the input and the state become levels while the layer runs."""

    def __init__(self, c: Compiler, step: Step, cell: Cell, w: Levels, r: Levels) -> None:
        super().__init__(c, step, cell)
        self.input_levels, self.state_levels = w, r
        self.directions, self.hidden, self.width = r.values.shape

    def _run(self, direction: int, x: View, y: View, h: View, cell: View) -> None:
        outer, inner = self._biases(direction)
        levels = quantized(self.c, self.x, by_row=not self.c.exact)
        states = (_part(h, direction), _part(cell, direction) if self.cell == "lstm" else None, self._lengths())
        recurrence = {
            "recurrent": self._gates(self.state_levels, direction), "by_row": int(not self.c.exact),
            "inner_bias": inner, **self._geometry(direction),
        }  # fmt: skip
        out = _part(y, (slice(None), direction))
        if self.batch < JOINT_BATCH:
            projected = self._projected(direction, levels, outer)
            self.c.emit("recurrent_u8", out, projected, *states, writes=(0, 2, 3), recurrence=recurrence)
            return
        recurrence["input"] = {"weights": self._gates(self.input_levels, direction), "bias": outer}
        self.c.emit(
            "recurrent_levels", out, levels.values, *states, levels.scale, levels.zero, writes=(0, 2, 3),
            recurrence=recurrence,
        )  # fmt: skip

    def _projected(self, direction: int, levels: Quantized, bias: Array | None) -> View:
        """W x + b of all steps."""
        c, (scale, zero) = self.c, self.input_levels.parameters(direction)
        projected = fresh((self.time * self.batch, self.width), np.float32)

        def make() -> packing.Packed:
            return packing.matrix(self.input_levels.values[direction], "integer")

        c.emit(
            "dynamic", projected, levels.values, levels.scale, levels.zero, None,
            weights=c.packer.get((self.input_levels.slot, direction, "integer"), make), b_zero=zero, scale=scale,
            rows=self.time * self.batch, depth=self.depth, columns=self.width, scale_step=int(scale.size > 1),
            epilogue={"output": TYPES["float32"], "bias": bias}, y_stride=self.width,
        )  # fmt: skip
        return projected

    def _gates(self, levels: Levels, direction: int) -> packing.Packed:
        def make() -> packing.Packed:
            return packing.gates(self.cell, levels.values[direction], *levels.parameters(direction))

        return self.c.packer.get((levels.slot, direction, "gates"), make)


LOWERS: dict[tuple[str, str], Lower] = {
    ("", "LSTM"): _lower("lstm"),
    ("", "GRU"): _lower("gru"),
    ("com.microsoft", "DynamicQuantizeLSTM"): dynamic_lstm,
}
