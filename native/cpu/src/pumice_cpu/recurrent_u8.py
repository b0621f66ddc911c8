"""LSTM and GRU layers with 8-bit weights, one direction a call: what multiplies them is quantized while they run.

The input of all steps is quantized once, the hidden state at every step: by row, symmetric with a scale for each row
of the batch, or as ONNX's DynamicQuantizeLinear has it, with one scale and zero point for all rows. Sums are exact
integers; gates, cell and state are float32. A GRU resets after its product (`linear_before_reset`).
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from pumice_cpu import dynamic
from pumice_cpu.arrays import Array, contiguous, pointer
from pumice_cpu.gemm import TYPES, Packed, pack
from pumice_cpu.native import NativeError, check, ffi, library
from pumice_cpu.recurrent import GATES, Cell, biases


class Gates:
    """R or W, packed so that all gates of a unit come together; freed with the last reference."""

    def __init__(self, cell: Cell, r: Array, scale: Array, zero: Array | None = None) -> None:
        """R (hidden, gates * hidden) or W (inputs, gates * hidden) of int8 or uint8; a scale a column or one; zero
        points a column.

        Raises:
            NativeError: shapes or types do not fit.
        """
        scales = np.ascontiguousarray(scale, np.float32).reshape(-1)
        rows, width = r.shape
        self.cell, self.hidden = cell, width // GATES[cell]
        if width % GATES[cell] or str(r.dtype) not in {"int8", "uint8"} or scales.size not in {1, width}:
            raise NativeError(
                f"{cell} weights {r.dtype}{list(r.shape)} with {scales.size} scales do not fit each other"
            )
        zeros = None if zero is None else np.ascontiguousarray(np.broadcast_to(zero, (width,)), np.int32)
        matrix, handle = ffi().new("struct pumice_matrix *"), ffi().new("struct pumice_gates **")
        given = np.ascontiguousarray(r)
        matrix.data, matrix.type, matrix.rows, matrix.columns = pointer(given), TYPES[str(r.dtype)], rows, width
        matrix.row_stride, matrix.column_stride = width, 1
        status = library().pumice_gates_pack(
            handle, matrix, GATES[cell], pointer(scales), int(scales.size > 1), pointer(zeros)
        )
        check(status, f"packing the recurrent weights {list(r.shape)}")
        self.handle = ffi().gc(handle[0], library().pumice_gates_free)


@attrs.frozen(eq=False)
class Weights:
    """One direction: W with its scales and zero points, and R."""

    input: Packed
    scale: Array
    zero: Array | None
    recurrent: Gates

    @property
    def hidden(self) -> int:
        return int(self.recurrent.hidden)


def prepare(
    cell: Cell, w: Array, w_scale: Array, w_zero: Array | None, r: Array, r_scale: Array, r_zero: Array | None
) -> Weights:
    """Pack W (input, gates * hidden) and R (hidden, gates * hidden), a scale and a zero point a column or for all.

    Raises:
        NativeError: shapes or types do not fit.
    """
    return Weights(pack(w, "integer"), w_scale, w_zero, Gates(cell, r, r_scale, r_zero))


def run(
    weights: Weights,
    x: Array,
    y: Array,
    h: Array,
    c: Array | None = None,
    *,
    bias: Array | None = None,
    peepholes: Array | None = None,
    lengths: Array | None = None,
    reverse: bool = False,
    by_row: bool = False,
    threads: int = 0,
) -> None:
    """Run over all steps.

    Args:
        weights: what `prepare` made.
        x: float32 (time, batch, input).
        y: (time, batch, hidden), written; its last two axes contiguous.
        h: (batch, hidden), contiguous, the first state; it becomes the last one.
        c: the same for an LSTM's cell.
        bias: (2 * gates * hidden,), those of W and then of R.
        peepholes: (3 * hidden,) for i, o, f.
        lengths: (batch,) int32; rows that are shorter keep their last state and output zeros beyond.
        reverse: from the last step to the first.
        by_row: a range for every row of the input and the state, else one for the batch.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: shapes or types do not fit.
    """
    (time, batch), gates = x.shape[:2], weights.recurrent
    if y.shape != (time, batch, gates.hidden) or h.shape != (batch, gates.hidden) or x.dtype != np.float32:
        raise NativeError(
            f"{gates.cell} over {x.dtype}{list(x.shape)}: states {list(h.shape)} and {list(y.shape)} do not fit"
        )
    outer, inner = biases(gates.hidden, bias, linear_before_reset=gates.cell == "gru")
    rows = contiguous(x, "x").reshape(time * batch, -1)
    projected = dynamic.matmul(
        rows, weights.input, weights.scale, outer, per_row=by_row, b_zero=weights.zero, threads=threads
    )
    kept: list[Any] = [
        None if array is None else np.ascontiguousarray(array, dtype)
        for array, dtype in ((inner, np.float32), (peepholes, np.float32), (lengths, np.int32))
    ]
    struct = ffi().new("struct pumice_recurrence_u8 *")
    struct.recurrent, struct.reverse, struct.by_row = gates.handle, reverse, by_row
    struct.time, struct.batch, struct.y_stride = time, batch, y.strides[0] // y.itemsize
    struct.projected = pointer(projected)
    struct.inner_bias, struct.peepholes, struct.lengths = map(pointer, kept)
    struct.h, struct.c, struct.y = pointer(h), pointer(c), pointer(y)
    check(library().pumice_recurrent_u8(struct, threads), f"the {gates.cell} over {list(x.shape)}")
