"""Whole LSTM and GRU layers in float32, with sigmoid and tanh as ONNX's defaults have them.

The input's products for all steps are one matrix product; the loop over time runs in C. Gates stand in ONNX's order:
i, o, f, c for an LSTM and z, r, h for a GRU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np

from pumice_cpu.arrays import Array, contiguous, empty, pointer
from pumice_cpu.gemm import Epilogue, gemm, pack
from pumice_cpu.native import NativeError, check, ffi, library
from pumice_cpu.nhwc import Finish, Product

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}
SPLIT_BATCH, SPLIT_ROWS = 8, 32
"""Rows of a step, and of the input of all steps, from which products of split operands are worth their tiles."""


class Gates:
    """R (gates * hidden, hidden), packed so that all gates of a unit come together; freed with the last reference."""

    def __init__(self, r: Array, *, split: bool = False) -> None:
        """`split` operands are multiplied as `nhwc.Product` does, where the level in force can.

        Raises:
            NativeError: there is not enough memory.
        """
        hidden = r.shape[1]
        given = np.ascontiguousarray(r)
        handle = ffi().new("struct pumice_recurrent_weights **")
        status = library().pumice_recurrent_pack(handle, pointer(given), r.shape[0] // hidden, hidden, split)
        check(status, f"packing the recurrent weights {list(r.shape)}")
        self.handle = ffi().gc(handle[0], library().pumice_recurrent_free)


@attrs.frozen(eq=False)
class Weights:
    """One direction's matrices, packed when they are first wanted."""

    cell: Cell
    linear_before_reset: bool
    w: Array
    r: Array
    """As they were given."""
    _gates: dict[bool, Gates] = attrs.field(factory=dict)
    _input: dict[bool, Any] = attrs.field(factory=dict)
    _biased: list[Any] = attrs.field(factory=list)
    """The bias of the last run, which seldom changes, and what was made of it."""

    @property
    def hidden(self) -> int:
        return int(self.r.shape[1])

    def gates(self, batch: int) -> Gates:
        """R for so many rows."""
        split = splits(batch, SPLIT_BATCH)
        if split not in self._gates:
            self._gates[split] = Gates(self.r, split=split)
        return self._gates[split]

    def project(self, x: Array, bias: Array | None, threads: int = 0) -> tuple[Array, Array | None]:
        """W x + b for rows of input, and what a GRU adds to the candidate before its reset."""
        last = self._biased[0] if self._biased else None
        if last is None or last[0] is not bias:
            outer, inner = biases(self.hidden, bias, linear_before_reset=self.linear_before_reset)
            last = (bias, Epilogue(bias=outer), Finish(bias=outer), inner)
            self._biased[:] = [last]
        split = splits(len(x), SPLIT_ROWS)
        if split not in self._input:
            self._input[split] = Product.of_matrix(self.w.T) if split else pack(self.w.T)
        weights = self._input[split]
        return (weights.rows(x, last[2]) if split else gemm(x, weights, last[1], threads=threads)), last[3]


def splits(rows: int, least: int) -> bool:
    """Whether so many rows are multiplied as split operands."""
    return rows >= least and bool(library().pumice_nhwc_splits())


def prepare(cell: Cell, w: Array, r: Array, *, linear_before_reset: bool = False) -> Weights:
    """W (gates * hidden, input) and R (gates * hidden, hidden), contiguous.

    Raises:
        NativeError: shapes or types do not fit.
    """
    hidden = r.shape[1]
    if r.shape[0] != GATES[cell] * hidden or w.shape[0] != r.shape[0] or w.dtype != np.float32 or r.dtype != np.float32:
        raise NativeError(f"{cell} weights {w.dtype}{list(w.shape)} and {r.dtype}{list(r.shape)} do not fit each other")
    return Weights(cell, linear_before_reset and cell == "gru", w, r)


@attrs.frozen(kw_only=True, eq=False)
class Direction:
    """One direction's weights and memory."""

    weights: Any
    """What `prepare` made, here or in `recurrent_u8`."""
    y: Array
    """(time, batch, hidden), written; its last two axes contiguous."""
    h: Array
    """(batch, hidden), contiguous, the first state; it becomes the last one."""
    c: Array | None = None
    """The same for an LSTM's cell."""
    bias: Array | None = None
    """(2 * gates * hidden,), those of W and then of R."""
    peepholes: Array | None = None
    """(3 * hidden,) for i, o, f."""
    reverse: bool = False
    """From the last step to the first."""


def run(
    directions: Sequence[Direction],
    x: Array,
    lengths: Array | None = None,
    *,
    threads: int = 0,
) -> None:
    """Run the directions of a layer over all steps, at the same time.

    Args:
        directions: one or two.
        x: (time, batch, input).
        lengths: (batch,) int32; rows that are shorter keep their last state and output zeros beyond.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: shapes or types do not fit.
    """
    time, batch = x.shape[:2]
    flat = contiguous(x, "x").reshape(time * batch, -1)
    lengths = None if lengths is None else np.ascontiguousarray(lengths, np.int32)
    structs, alive = ffi().new("struct pumice_recurrence[]", len(directions)), []
    for struct, d in zip(structs, directions, strict=True):
        if d.y.shape != (time, batch, d.weights.hidden) or d.h.shape != d.y.shape[1:] or x.dtype != np.float32:
            shapes = f"states {list(d.h.shape)} and {list(d.y.shape)}"
            raise NativeError(f"{d.weights.cell} over {x.dtype}{list(x.shape)}: {shapes} do not fit")
        peepholes = None if d.peepholes is None else np.ascontiguousarray(d.peepholes, np.float32)
        gates, (projected, inner) = (
            d.weights.gates(batch),
            d.weights.project(flat, d.bias, threads),
        )
        struct.weights, struct.reverse = gates.handle, d.reverse
        struct.linear_before_reset = d.weights.linear_before_reset
        struct.time, struct.batch, struct.y_stride = (
            time,
            batch,
            d.y.strides[0] // d.y.itemsize,
        )
        struct.projected, struct.inner_bias, struct.peepholes = (
            pointer(projected),
            pointer(inner),
            pointer(peepholes),
        )
        struct.lengths, struct.h, struct.c, struct.y = (
            pointer(lengths),
            pointer(d.h),
            pointer(d.c),
            pointer(d.y),
        )
        alive.append((gates, projected, inner, peepholes))
    check(
        library().pumice_recurrent(structs, len(directions), threads),
        directions[0].weights.cell,
    )


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
    flat = contiguous(x, "x").reshape(time * batch, -1)
    projected, _ = prepare("lstm", w, r).project(flat, bias, threads)
    split = splits(batch, SPLIT_BATCH)
    products = [Product.of_matrix(matrix) if split else pack(matrix) for matrix in (r.T, r)]
    gates, kept, cells = (
        empty((time * batch, 4 * hidden)),
        *(empty((time + 1, batch, hidden)) for _ in range(2)),
    )
    kept[0], cells[0] = first
    dh, dc = (states((batch, hidden), d) for d in last)
    struct = ffi().new("struct pumice_lstm_gradient *")
    struct.reverse, struct.time, struct.batch, struct.hidden = (
        reverse,
        time,
        batch,
        hidden,
    )
    struct.dy, struct.dy_stride, struct.projected = (
        pointer(dy),
        dy.strides[0] // dy.itemsize,
        pointer(projected),
    )
    names = ("split", "split_back") if split else ("recurrent", "back")
    for name, product in zip(names, products, strict=True):
        setattr(struct, name, product.handle)
    struct.gates, struct.states, struct.cells = (
        pointer(gates),
        pointer(kept),
        pointer(cells),
    )
    struct.dh, struct.dc = pointer(dh), pointer(dc)
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


def states(shape: tuple[int, ...], initial: Array | None) -> Array:
    """A copy of the initial states that may be written, or zeros."""
    state = empty(shape)
    state[...] = 0 if initial is None else initial
    return state
