"""Whole LSTM and GRU layers in float32, one direction a call, with sigmoid and tanh as ONNX's defaults have them.

The input's products for all steps are one matrix product; the loop over time runs in C. Gates stand in ONNX's order:
i, o, f, c for an LSTM and z, r, h for a GRU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np

from pumice_cpu.arrays import Array, contiguous, empty, pointer
from pumice_cpu.gemm import Epilogue, Packed, gemm, pack
from pumice_cpu.native import NativeError, check, ffi, library
from pumice_cpu.nhwc import Product

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}
SPLIT_BATCH = 8
"""Rows from which products of split operands are worth their tiles."""


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
    r: Array
    """R as it was given."""
    _split: list[Product] = attrs.field(factory=list)
    _biased: list[Any] = attrs.field(factory=list)
    """The bias of the last run, which seldom changes, and what was made of it."""

    def biased(self, bias: Array | None) -> tuple[Epilogue, Array | None]:
        """What the projected input takes along, and what a GRU adds to the candidate before its reset."""
        last = self._biased[0] if self._biased else None
        if last is None or last[0] is not bias:
            outer, inner = biases(self.hidden, bias, linear_before_reset=self.linear_before_reset)
            last = (bias, Epilogue(bias=outer), inner)
            self._biased[:] = [last]
        return last[1], last[2]

    def split(self, batch: int) -> Any:
        """R for products of split operands, NULL where these are not faster."""
        if self.cell != "lstm" or batch < SPLIT_BATCH or not library().pumice_nhwc_splits():
            return ffi().NULL
        if not self._split:
            self._split.append(Product.of_matrix(self.r.T))
        return self._split[0].handle


def prepare(cell: Cell, w: Array, r: Array, *, linear_before_reset: bool = False) -> Weights:
    """Pack W (gates * hidden, input) and R (gates * hidden, hidden).

    Raises:
        NativeError: shapes or types do not fit.
    """
    hidden = r.shape[1]
    if r.shape[0] != GATES[cell] * hidden or w.shape[0] != r.shape[0] or w.dtype != np.float32 or r.dtype != np.float32:
        raise NativeError(f"{cell} weights {w.dtype}{list(w.shape)} and {r.dtype}{list(r.shape)} do not fit each other")
    if cell == "lstm":
        return Weights(cell, hidden, False, pack(w.T), pack(r.T), None, r)
    return Weights(cell, hidden, linear_before_reset, pack(w.T), pack(r[: 2 * hidden].T), pack(r[2 * hidden :].T), r)


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
    hidden = weights.hidden
    if y.shape != (time, batch, hidden) or h.shape != (batch, hidden) or x.dtype != np.float32:
        raise NativeError(
            f"{weights.cell} over {x.dtype}{list(x.shape)}: states {list(h.shape)} and {list(y.shape)} do not fit"
        )
    epilogue, inner = weights.biased(bias)
    projected = gemm(contiguous(x, "x").reshape(time * batch, -1), weights.input, epilogue, threads=threads)
    peepholes = None if peepholes is None else np.ascontiguousarray(peepholes, np.float32)
    lengths = None if lengths is None else np.ascontiguousarray(lengths, np.int32)
    struct = ffi().new("struct pumice_recurrence *")
    struct.gru, struct.linear_before_reset, struct.reverse = weights.cell == "gru", weights.linear_before_reset, reverse
    struct.time, struct.batch, struct.hidden, struct.y_stride = time, batch, hidden, y.strides[0] // y.itemsize
    struct.projected, struct.recurrent = pointer(projected), weights.recurrent.handle
    struct.candidate = ffi().NULL if weights.candidate is None else weights.candidate.handle
    struct.inner_bias, struct.peepholes = pointer(inner), pointer(peepholes)
    struct.lengths, struct.h, struct.c, struct.y = pointer(lengths), pointer(h), pointer(c), pointer(y)
    struct.split = weights.split(batch)
    check(library().pumice_recurrent(struct, threads), weights.cell)


@attrs.frozen(eq=False)
class Pulled:
    """Gradients of one direction of an LSTM."""

    gates: Array
    """(time * batch, 4 * hidden): of the gates' sums."""
    states: Array
    """(time * batch, hidden): the state before each step, in order of time."""
    h: Array
    """(batch, hidden): of the first state, as `c`."""
    c: Array


def lstm_gradient(
    w: Array, r: Array, bias: Array | None, x: Array, first: Sequence[Array], dy: Array, last: Sequence[Array],
    *, reverse: bool = False, threads: int = 0,
) -> Pulled:  # fmt: skip
    """Run an LSTM again, and back; arguments as for `prepare` and `run`.

    Args:
        w: (4 * hidden, input).
        r: (4 * hidden, hidden).
        bias: (8 * hidden,).
        x: (time, batch, input).
        first: h and c before the first step; not changed.
        dy: (time, batch, hidden), contiguous but for the steps.
        last: gradients of h and c after the last step; not changed.
        reverse: from the last step to the first.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: there is not enough memory.
    """
    (time, batch), hidden = x.shape[:2], r.shape[1]
    weights, back = prepare("lstm", w, r), pack(r)
    flat = contiguous(x, "x").reshape(time * batch, -1)
    projected = gemm(flat, weights.input, weights.biased(bias)[0], threads=threads)
    gates, kept, cells = empty((time * batch, 4 * hidden)), *(empty((time + 1, batch, hidden)) for _ in range(2))
    kept[0], cells[0] = first
    dh, dc = (states((batch, hidden), d) for d in last)
    struct = ffi().new("struct pumice_lstm_gradient *")
    struct.reverse, struct.time, struct.batch, struct.hidden = reverse, time, batch, hidden
    struct.dy, struct.dy_stride, struct.projected = pointer(dy), dy.strides[0] // dy.itemsize, pointer(projected)
    struct.recurrent, struct.back = weights.recurrent.handle, back.handle
    struct.gates, struct.states, struct.cells = pointer(gates), pointer(kept), pointer(cells)
    struct.dh, struct.dc = pointer(dh), pointer(dc)
    struct.split = weights.split(batch)
    split_back = None if struct.split == ffi().NULL else Product.of_matrix(r)
    struct.split_back = ffi().NULL if split_back is None else split_back.handle
    check(library().pumice_lstm_gradient(struct, threads), "the gradient of the lstm")
    before = kept[:-1][::-1] if reverse else kept[:-1]
    return Pulled(gates, before.reshape(time * batch, hidden), dh, dc)


def biases(hidden: int, bias: Array | None, *, linear_before_reset: bool) -> tuple[Array | None, Array | None]:
    """What the projected input takes along, and what a GRU adds to the candidate before its reset."""
    if bias is None:
        return None, None
    half = bias.size // 2
    outer: Any = bias[:half] + bias[half:]
    if not linear_before_reset:
        return outer, None
    start = 2 * hidden
    outer[start:] = bias[start:half]
    return outer, np.ascontiguousarray(bias[half + start :])


def states(shape: tuple[int, int], initial: Array | None) -> Array:
    """A copy of the initial states that may be written, or zeros."""
    state = empty(shape)
    state[...] = 0 if initial is None else initial
    return state
