"""Whole LSTM and GRU layers in float32, one direction a call, with sigmoid and tanh as ONNX's defaults have them.

The input's products for all steps are one matrix product. On Hopper and later, up to 256 units, the loop over time of
an LSTM is one kernel: eight blocks keep R in registers and hand each other the state. Otherwise every step is a matrix
product and a kernel. Gates stand in ONNX's order: i, o, f, c for an LSTM and z, r, h for a GRU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.products import HOPPER, Right, product

if TYPE_CHECKING:
    import cupy

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}
BLOCKS, UNIT_THREADS = 8, 16
"""Of a cluster, and of a unit in it; as in csrc/recurrent_sm90.cu."""
DEEPEST = 256
"""Units whose weights a cluster keeps."""
CLUSTERS, MOST_ROWS = 12, 4
"""That fit side by side on the largest GPUs, over which a batch is spread; and rows of the batch that one can have."""
THREADS = 256


@attrs.frozen(eq=False)
class Weights:
    """One direction's matrices, made ready for many runs."""

    cell: Cell
    hidden: int
    input: Right
    recurrent: Right | None
    """None where the whole loop is one kernel."""
    r: cupy.ndarray


def prepare(cell: Cell, w: cupy.ndarray, r: cupy.ndarray) -> Weights:
    """W (gates * hidden, input) and R (gates * hidden, hidden) of an LSTM, or of a GRU with linear_before_reset.

    Raises:
        ValueError: shapes or types do not fit.
    """
    import cupy

    hidden = r.shape[1]
    if r.shape[0] != GATES[cell] * hidden or w.shape[0] != r.shape[0] or w.dtype != np.float32 or r.dtype != np.float32:
        raise ValueError(f"{cell} weights {w.dtype}{list(w.shape)} and {r.dtype}{list(r.shape)} do not fit each other")
    at_once = cell == "lstm" and hidden <= DEEPEST and device.gpu().capability >= HOPPER
    return Weights(cell, hidden, Right.of(w), None if at_once else Right.of(r), cupy.ascontiguousarray(r))


def run(
    weights: Weights,
    x: cupy.ndarray,
    y: cupy.ndarray,
    h: cupy.ndarray,
    c: cupy.ndarray | None = None,
    *,
    bias: cupy.ndarray | None = None,
    peepholes: cupy.ndarray | None = None,
    lengths: cupy.ndarray | None = None,
    reverse: bool = False,
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
        lengths: (batch,); rows that are shorter keep their last state and output zeros beyond.
        reverse: from the last step to the first.

    Raises:
        ValueError: shapes or types do not fit.
    """
    import cupy

    (time, batch), hidden = x.shape[:2], weights.hidden
    if y.shape != (time, batch, hidden) or h.shape != (batch, hidden) or x.dtype != np.float32:
        raise ValueError(
            f"{weights.cell} over {x.dtype}{list(x.shape)}: states {list(h.shape)} and {list(y.shape)} do not fit"
        )
    lengths = None if lengths is None else cupy.ascontiguousarray(lengths, np.int32)
    peepholes = None if peepholes is None else cupy.ascontiguousarray(peepholes)
    outer, inner = _biases(weights.cell, bias, hidden)
    projected = product(cupy.ascontiguousarray(x).reshape(time * batch, -1), weights.input, outer)
    if weights.recurrent is None:
        _at_once(projected, weights.r, peepholes, lengths, h, c, y, reverse)
        return
    extra = peepholes if weights.cell == "lstm" else inner
    projected, sums = projected.reshape(time, batch, -1), cupy.empty((batch, len(weights.r)), np.float32)
    for t in reversed(range(time)) if reverse else range(time):
        product(h, weights.recurrent, out=sums)
        _step(weights.cell, projected[t], sums, extra, lengths, t, h, c, y[t])


def _biases(cell: Cell, bias: cupy.ndarray | None, hidden: int) -> tuple[Any, Any]:
    """What is added to the projected input, and what a GRU adds to the candidate's product before the reset."""
    if bias is None:
        return None, None
    half = bias.size // 2
    outer = bias[:half] + bias[half:]
    if cell == "lstm":
        return outer, None
    outer[2 * hidden :] = bias[2 * hidden : half]
    return outer, bias[half + 2 * hidden :].copy()


def _at_once(
    projected: Any, r: Any, peepholes: Any, lengths: Any, h: Any, c: Any, y: cupy.ndarray, reverse: bool
) -> None:
    time, batch, hidden = y.shape
    vectors = next(v for v in (4, 8, 16) if hidden <= 16 * v)
    rows = min(MOST_ROWS, blocks(batch, CLUSTERS))
    threads = -(-(-(-hidden // BLOCKS) * UNIT_THREADS) // 32) * 32
    launch(
        kernel("recurrent_sm90", f"lstm_cluster<{vectors}, {rows}>"), BLOCKS * blocks(batch, rows), threads, projected,
        r, peepholes, lengths, h, c, y, np.int32(time), np.int32(batch), np.int32(hidden),
        np.int64(y.strides[0] // y.itemsize), np.int32(reverse), cluster=BLOCKS,
    )  # fmt: skip


def _step(cell: Cell, projected: Any, sums: Any, extra: Any, lengths: Any, t: int, h: Any, c: Any, y: Any) -> None:
    """`extra` is an LSTM's peepholes or what a GRU adds to its candidate."""
    batch, hidden = h.shape
    state = (h,) if cell == "gru" else (h, c)
    launch(
        kernel("recurrent", f"{cell}_step"), blocks(batch * hidden, THREADS), THREADS, projected, sums, extra,
        lengths, np.int32(t), *state, y, np.int32(batch), np.int32(hidden),
    )  # fmt: skip
