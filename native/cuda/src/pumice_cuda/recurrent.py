"""Whole LSTM and GRU layers in float32, one direction a call, with sigmoid and tanh as ONNX's defaults have them.

The input's products for all steps are one matrix product. The loop over time of an LSTM is one kernel: on Hopper and
later, up to 256 units, eight blocks keep R in registers and hand each other the state; otherwise all blocks of the GPU
keep R, if they can, and hand it over through its memory. For a GRU, and where R is too large, every step is a matrix
product and a kernel. Gates stand in ONNX's order: i, o, f, c for an LSTM and z, r, h for a GRU.

With weights of 8 bits, input and state are quantized, the state at every step, and multiplied as integers: the state by
one cluster, up to 320 units and 64 rows of a batch. Beyond, all blocks multiply what its levels stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.constants import Levels
from pumice_cuda.epilogue import Epilogue
from pumice_cuda.gemm import gemm, readable
from pumice_cuda.launching import blocks, launch
from pumice_cuda.products import Right, product
from pumice_cuda.quantize import dynamic_quantize
from pumice_cuda.teams import truth

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
MOST_LEVELS, LEVEL_ROWS, LEVEL_DEPTH = 320, 64, 32
"""Units and rows of a batch whose levels a cluster takes, and the levels that are multiplied at once; as in
csrc/recurrent_levels.cu."""
THREADS = 256
GRID_UNITS, GRID_WARPS, GRID_ROWS = (4, 8), 8, 32
"""Units of a block of a whole GPU's, its warps, and rows of the batch that it takes at once; as in
csrc/recurrent_grid.cu."""
SHARED, MUCH_SHARED = 96 << 10, 160 << 10
"""Bytes of shared memory that a block can have on any GPU, and on those with much."""
WITH_MUCH_SHARED = {(8, 0), (9, 0), (10, 0)}
Loop = Literal["cluster", "grid", "steps"]
"""What runs over time: a cluster, all blocks of a GPU, or launches."""


@attrs.frozen(eq=False)
class IntegerInput:
    """One direction's W in 8 bits."""

    levels: Levels
    """(4 * hidden, input)."""
    scale: cupy.ndarray
    """(4 * hidden,)."""

    @classmethod
    def of(cls, w: cupy.ndarray, scale: cupy.ndarray, zero: cupy.ndarray) -> IntegerInput | None:
        """W (input, 4 * hidden) with scales and zero points, one or (4 * hidden,); None if a level is not an int8."""
        levels = Levels.of(w.T, zero)
        if levels is None:
            return None
        return cls(attrs.evolve(levels, values=readable(levels.values)), _each(scale, w.shape[1]))

    def product(self, x: cupy.ndarray, bias: cupy.ndarray | None) -> cupy.ndarray:
        """What DynamicQuantizeLinear leaves of x (rows, input), times W, + bias (4 * hidden,)."""
        q, scale, zero = dynamic_quantize(x)
        sums = {"offset": self.levels.sums, "offset_zero": zero}
        return gemm(readable(q), self.levels.values, Epilogue(scale=self.scale, scale_by=scale, bias=bias, **sums))


@attrs.frozen(eq=False)
class IntegerState:
    """One direction's R in 8 bits, for a cluster."""

    r: cupy.ndarray
    """(4 * hidden, hidden in multiples of LEVEL_DEPTH), int8."""
    scale: cupy.ndarray
    """(4 * hidden,)."""

    @classmethod
    def of(cls, r: cupy.ndarray, scale: cupy.ndarray) -> IntegerState | None:
        """R (hidden, 4 * hidden) without zero points, its scales one or (4 * hidden,); None if no cluster takes it."""
        import cupy

        hidden, gates = r.shape
        if r.dtype != np.int8 or hidden > MOST_LEVELS or device.gpu().capability < device.HOPPER:
            return None
        padded = cupy.zeros((gates, blocks(hidden, LEVEL_DEPTH) * LEVEL_DEPTH), np.int8)
        padded[:, :hidden] = r.T
        return cls(padded, _each(scale, gates))


def _each(scale: cupy.ndarray, count: int) -> cupy.ndarray:
    import cupy

    return cupy.ascontiguousarray(cupy.broadcast_to(scale.astype(np.float32), count))


@attrs.frozen(eq=False)
class Weights:
    """One direction's matrices, made ready for many runs."""

    cell: Cell
    hidden: int
    input: Right | IntegerInput
    recurrent: Right | None
    """None where the whole loop is one kernel."""
    r: cupy.ndarray
    loop: Loop
    rounds: bool
    state: IntegerState | None


def prepare(
    cell: Cell,
    w: cupy.ndarray | IntegerInput,
    r: cupy.ndarray,
    *,
    rounds: bool = False,
    state: IntegerState | None = None,
) -> Weights:
    """W (gates * hidden, input) and R (gates * hidden, hidden) of an LSTM, or of a GRU with linear_before_reset.

    `rounds`: R is multiplied by what DynamicQuantizeLinear leaves of the state, at every step; `state` is the same R,
    if a cluster can have it.

    Raises:
        ValueError: shapes or types do not fit, or there is no kernel that rounds the state.
    """
    import cupy

    hidden = r.shape[1]
    given, kind = (w.levels.values, np.int8) if isinstance(w, IntegerInput) else (w, np.float32)
    if r.shape[0] != GATES[cell] * hidden or len(given) != len(r) or given.dtype != kind or r.dtype != np.float32:
        raise ValueError(
            f"{cell} weights {given.dtype}{list(given.shape)} and {r.dtype}{list(r.shape)} do not fit each other"
        )
    loop = _loop(cell, hidden, rounds)
    if rounds and loop != "grid":
        raise ValueError(f"{cell} of {hidden} units whose state is quantized has no kernel")
    parts = Right.of(r) if loop == "steps" else None
    entered = w if isinstance(w, IntegerInput) else Right.of(w)
    return Weights(cell, hidden, entered, parts, cupy.ascontiguousarray(r), loop, rounds, state)


def _loop(cell: Cell, hidden: int, rounds: bool) -> Loop:
    if cell == "lstm" and hidden <= DEEPEST and device.gpu().capability >= device.HOPPER and not rounds:
        return "cluster"
    return "grid" if cell == "lstm" and units_of_block(hidden) is not None else "steps"


def units_of_block(hidden: int) -> int | None:
    """Of all blocks of a GPU, one a multiprocessor; None where they cannot keep R."""
    gpu = device.gpu()
    room = MUCH_SHARED if gpu.capability in WITH_MUCH_SHARED else SHARED
    fitting = (u for u in GRID_UNITS if blocks(hidden, u) <= gpu.multiprocessors and _grid_shared(u, hidden) <= room)
    return next(fitting, None)


def _grid_shared(units: int, hidden: int) -> int:
    """Bytes of R and of the sums of all warps."""
    return 4 * 4 * units * (hidden + GRID_WARPS * GRID_ROWS)


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
    projected = _projected(weights, cupy.ascontiguousarray(x).reshape(time * batch, -1), outer)
    if weights.recurrent is None:
        _together(weights, batch)(weights, projected, peepholes, lengths, h, c, y, reverse)
        return
    extra = peepholes if weights.cell == "lstm" else inner
    projected, sums = projected.reshape(time, batch, -1), cupy.empty((batch, len(weights.r)), np.float32)
    for t in reversed(range(time)) if reverse else range(time):
        product(h, weights.recurrent, out=sums)
        _step(weights.cell, projected[t], sums, extra, lengths, t, h, c, y[t])


def _projected(weights: Weights, x: cupy.ndarray, bias: cupy.ndarray | None) -> cupy.ndarray:
    """The input's part of all gates."""
    entered = weights.input
    return entered.product(x, bias) if isinstance(entered, IntegerInput) else product(x, entered, bias)


def _together(weights: Weights, batch: int) -> Callable[..., None]:
    """What computes all steps in one launch."""
    if weights.state is not None and batch <= LEVEL_ROWS:
        return _on_levels
    return _at_once if weights.loop == "cluster" else _on_all


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
    weights: Weights, projected: Any, peepholes: Any, lengths: Any, h: Any, c: Any, y: cupy.ndarray, reverse: bool
) -> None:
    time, batch, hidden = y.shape
    vectors = next(v for v in (4, 8, 16) if hidden <= 16 * v)
    rows = min(MOST_ROWS, blocks(batch, CLUSTERS))
    threads = -(-(-(-hidden // BLOCKS) * UNIT_THREADS) // 32) * 32
    launch(
        kernel("recurrent_sm90", f"lstm_cluster<{vectors}, {rows}>"), BLOCKS * blocks(batch, rows), threads, projected,
        weights.r, peepholes, lengths, h, c, y, np.int32(time), np.int32(batch), np.int32(hidden),
        np.int64(y.strides[0] // y.itemsize), np.int32(reverse), cluster=BLOCKS,
    )  # fmt: skip


def _on_levels(
    weights: Weights, projected: Any, peepholes: Any, lengths: Any, h: Any, c: Any, y: cupy.ndarray, reverse: bool
) -> None:
    (time, batch, hidden), state = y.shape, weights.state
    assert state is not None
    steps, tiles = blocks(hidden, LEVEL_DEPTH), blocks(batch, 16)
    parts, each = min(tiles, 2), blocks(tiles, 2)
    launch(
        kernel("recurrent_levels", f"lstm_levels<{steps}, {parts}, {each}>"), BLOCKS, 32 * blocks(steps, 2) * parts,
        projected, state.r, state.scale, peepholes, lengths, h, c, y, np.int32(time), np.int32(batch),
        np.int32(hidden), np.int64(y.strides[0] // y.itemsize), np.int32(reverse), cluster=BLOCKS,
    )  # fmt: skip


def _on_all(
    weights: Weights, projected: Any, peepholes: Any, lengths: Any, h: Any, c: Any, y: cupy.ndarray, reverse: bool
) -> None:
    import cupy

    (time, batch, hidden), units = y.shape, units_of_block(weights.hidden)
    assert units is not None
    grid = blocks(hidden, units)
    states = cupy.empty((2, hidden, blocks(batch, GRID_ROWS) * GRID_ROWS), np.float32)
    ranges, count = cupy.empty((2, grid, 2), np.float32), cupy.zeros(1, np.uint32)
    launch(
        kernel("recurrent_grid", f"lstm_grid<{units}, {truth(weights.rounds)}>"), grid, GRID_WARPS * 32,
        projected, weights.r, peepholes, lengths, h, c, y, states, ranges, count, np.int32(time), np.int32(batch),
        np.int32(hidden), np.int64(y.strides[0] // y.itemsize), np.int32(reverse),
        shared=_grid_shared(units, hidden), meets=True,
    )  # fmt: skip


def _step(cell: Cell, projected: Any, sums: Any, extra: Any, lengths: Any, t: int, h: Any, c: Any, y: Any) -> None:
    """`extra` is an LSTM's peepholes or what a GRU adds to its candidate."""
    batch, hidden = h.shape
    state = (h,) if cell == "gru" else (h, c)
    launch(
        kernel("recurrent", f"{cell}_step"), blocks(batch * hidden, THREADS), THREADS, projected, sums, extra,
        lengths, np.int32(t), *state, y, np.int32(batch), np.int32(hidden),
    )  # fmt: skip
