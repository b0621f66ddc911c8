"""Whole LSTM and GRU layers in float32, one direction a call, with sigmoid and tanh as ONNX's defaults have them.

The input's products for all steps are one matrix product; the loop over time runs in C. Gates stand in ONNX's order:
i, o, f, c for an LSTM and z, r, h for a GRU.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np

from pumice_cpu.arrays import Array, contiguous, empty, pointer
from pumice_cpu.gemm import Epilogue, Packed, gemm, pack
from pumice_cpu.native import NativeError, check, ffi, library

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}


@attrs.frozen(eq=False)
class Weights:
    """One direction's matrices as the kernels read them."""

    cell: Cell
    hidden: int
    linear_before_reset: bool
    input: Packed
    recurrent: Packed
    candidate: Packed | None
    """A GRU's last third of R, whose product takes another operand."""


def prepare(cell: Cell, w: Array, r: Array, *, linear_before_reset: bool = False) -> Weights:
    """Pack W (gates * hidden, input) and R (gates * hidden, hidden).

    Raises:
        NativeError: shapes or types do not fit.
    """
    hidden = r.shape[1]
    if r.shape[0] != GATES[cell] * hidden or w.shape[0] != r.shape[0] or w.dtype != np.float32 or r.dtype != np.float32:
        raise NativeError(f"{cell} weights {w.dtype}{list(w.shape)} and {r.dtype}{list(r.shape)} do not fit each other")
    if cell == "lstm":
        return Weights(cell, hidden, False, pack(w.T), pack(r.T), None)
    return Weights(cell, hidden, linear_before_reset, pack(w.T), pack(r[: 2 * hidden].T), pack(r[2 * hidden :].T))


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
    threads: int = 0,
) -> None:
    """Run over all steps.

    Args:
        weights: what `prepare` made.
        x: (time, batch, input).
        y: (time, batch, hidden), written; its last two axes contiguous.
        h: (batch, hidden), contiguous, the first state; it becomes the last one.
        c: the same for an LSTM's cell.
        bias: (2 * gates * hidden,), those of W and then of R.
        peepholes: (3 * hidden,) for i, o, f.
        lengths: (batch,) int32; rows that are shorter keep their last state and output zeros beyond.
        reverse: from the last step to the first.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: shapes or types do not fit.
    """
    time, batch = x.shape[:2]
    hidden, width = weights.hidden, GATES[weights.cell] * weights.hidden
    if y.shape != (time, batch, hidden) or h.shape != (batch, hidden) or x.dtype != np.float32:
        raise NativeError(
            f"{weights.cell} over {x.dtype}{list(x.shape)}: states {list(h.shape)} and {list(y.shape)} do not fit"
        )
    outer, inner = _biases(weights, bias)
    projected = gemm(contiguous(x, "x").reshape(time * batch, -1), weights.input, Epilogue(bias=outer), threads=threads)
    peepholes = None if peepholes is None else np.ascontiguousarray(peepholes, np.float32)
    lengths = None if lengths is None else np.ascontiguousarray(lengths, np.int32)
    struct = ffi().new("struct pumice_recurrence *")
    struct.gru, struct.linear_before_reset, struct.reverse = weights.cell == "gru", weights.linear_before_reset, reverse
    struct.time, struct.batch, struct.hidden, struct.y_stride = time, batch, hidden, y.strides[0] // y.itemsize
    struct.projected, struct.recurrent = pointer(projected), weights.recurrent.handle
    struct.candidate = ffi().NULL if weights.candidate is None else weights.candidate.handle
    struct.inner_bias, struct.peepholes = pointer(inner), pointer(peepholes)
    struct.lengths, struct.h, struct.c, struct.y = pointer(lengths), pointer(h), pointer(c), pointer(y)
    check(library().pumice_recurrent(struct, threads), f"the {weights.cell} over {list(x.shape)} with width {width}")


def _biases(weights: Weights, bias: Array | None) -> tuple[Array | None, Array | None]:
    """What is added to the projected input, and what a GRU adds to the candidate before its reset."""
    if bias is None:
        return None, None
    half = bias.size // 2
    outer: Any = bias[:half] + bias[half:]
    if not weights.linear_before_reset:
        return outer, None
    start = 2 * weights.hidden
    outer[start:] = bias[start:half]
    return outer, np.ascontiguousarray(bias[half + start :])


def states(shape: tuple[int, int], initial: Array | None) -> Array:
    """A copy of the initial states that may be written, or zeros."""
    state = empty(shape)
    state[...] = 0 if initial is None else initial
    return state
