"""LSTM, and GRU with linear_before_reset, of the Plan in float32, with ONNX's default activations and no clip; and
onnxruntime's LSTM of 8-bit weights, whose input and state are quantized while it runs.

Constant weights are made ready when they are first used; weights that are fed, at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.constants import Once

if TYPE_CHECKING:
    from pumice_cuda.recurrent import Cell, Weights

DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh")}
FLOAT = np.dtype(np.float32)
DYNAMIC_WEIGHTS = (1, 2, 8, 9, 10, 11)
"""Inputs of DynamicQuantizeLSTM: the integers of W and R, the scale and the zero point of W, those of R."""


def _accepts(cell: Cell) -> Callable[[Node], str | None]:
    def accepts(node: Node) -> str | None:
        names = [name.lower() for name in node.get("activations") or ()]
        wanted = DEFAULTS[cell] * 2
        if any(name != default for name, default in zip(names, wanted, strict=False)):
            return "its activations are not the default ones"
        if node.get("clip") or node.get("input_forget"):
            return "it clips, or couples its gates"
        if cell == "gru" and not node.get("linear_before_reset", 0):
            return "it resets the state before the product"
        return None

    return accepts


def _prepared(cell: Cell, w: Array, r: Array) -> list[Weights]:
    from pumice_cuda.recurrent import prepare

    return [prepare(cell, w[i], r[i]) for i in range(len(w))]


def _layer(cell: Cell, node: Node, weights: Sequence[Weights], x: Array, rest: Sequence[Any]) -> Outputs:
    """Y (time, directions, batch, hidden) and the last states, in the node's layout; `rest` begins with B."""
    import cupy

    from pumice_cuda.recurrent import run

    b, lengths, first_h, first_c, peepholes = (*rest, *[None] * 5)[:5]
    layout, count = node.get("layout", 0), len(weights)
    steps = x.swapaxes(0, 1) if layout else x
    (time, batch), hidden = steps.shape[:2], weights[0].hidden
    y = cupy.empty((time, count, batch, hidden), np.float32)
    first = (first_h, first_c) if cell == "lstm" else (first_h,)
    states = cupy.zeros((len(first), count, batch, hidden), np.float32)
    for state, given in zip(states, first, strict=True):
        if given is not None:
            state[...] = given.swapaxes(0, 1) if layout else given
    for i, direction in enumerate(weights):
        reverse = i == 1 or node.get("direction", "forward") == "reverse"
        run(
            direction, steps, y[:, i], *(s[i] for s in states), bias=None if b is None else b[i], lengths=lengths,
            peepholes=None if peepholes is None else peepholes[i], reverse=reverse,
        )  # fmt: skip
    if layout:
        return y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states)
    return y, *states


def _fits(x: Array, w: Array, r: Array) -> bool:
    return bool(x.size) and w.dtype == FLOAT and r.dtype == FLOAT


def _run(cell: Cell) -> Forward:
    def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
        if not _fits(x, w, r):
            return reference.forward(node, x, w, r, *rest)
        return _layer(cell, node, _prepared(cell, w, r), x, rest)

    return forward


def _bind(cell: Cell) -> Callable[[Node, Sequence[Any]], Forward]:
    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        known_w, known_r = constants[1], constants[2]
        weights = Once(lambda: _prepared(cell, known_w, known_r))

        def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
            if w is not known_w or r is not known_r or not _fits(x, w, r):
                return _run(cell)(node, x, w, r, *rest)
            return _layer(cell, node, weights(), x, rest)

        return forward

    return bind


def _bind_dynamic(node: Node, constants: Sequence[Any]) -> Forward | None:
    """With the integers, scales and zero points that the plan knows."""
    from pumice_cuda.recurrent import IntegerInput, units_of_block

    known = [[*constants, *[None] * 12][i] for i in DYNAMIC_WEIGHTS]
    if any(v is None for v in known) or units_of_block(known[1].shape[1]) is None:
        return None
    inputs = [IntegerInput.of(*direction) for direction in zip(known[0], *known[2:4], strict=True)]
    if any(entered is None for entered in inputs):
        return None
    symmetric = not known[5].any()
    weights = Once(lambda: _prepared_integers(inputs, known[1], *known[4:], symmetric=symmetric))

    def forward(node: Node, x: Array, *rest: Any) -> Outputs:
        arrays = [*(x, *rest), *[None] * 12]
        if any(arrays[i] is not v for i, v in zip(DYNAMIC_WEIGHTS, known, strict=True)) or not x.size:
            return reference.forward(node, x, *rest)
        return _layer("lstm", node, weights(), x, arrays[3:8])

    return forward


def _prepared_integers(inputs: Sequence[Any], r: Array, scale: Array, zero: Array, *, symmetric: bool) -> list[Weights]:
    """Directions of DynamicQuantizeLSTM; `symmetric`: the zero points of R are zero."""
    from pumice_cuda.recurrent import IntegerState, prepare

    return [
        prepare("lstm", entered, real, rounds=True, state=IntegerState.of(integers, each) if symmetric else None)
        for entered, real, integers, each in zip(inputs, _real(r, scale, zero), r, scale, strict=True)
    ]


def _real(integers: Array, scale: Array, zero: Array) -> Any:
    """(directions, inputs, 4 hidden) as an LSTM has its weights: (directions, 4 hidden, inputs)."""
    broad = [v.reshape(len(integers), 1, -1).astype(np.float32) for v in (scale, zero)]
    return ((integers.astype(np.float32) - broad[1]) * broad[0]).transpose(0, 2, 1)


def _record(op_type: str, cell: Cell, since: int) -> Kernel:
    return Kernel(
        op_type=op_type, since=since, run=_run(cell), bind=_bind(cell), accepts=_accepts(cell), rtol=1e-4, atol=1e-4
    )


KERNELS = (
    _record("LSTM", "lstm", 1),
    _record("GRU", "gru", 3),
    Kernel(
        op_type="DynamicQuantizeLSTM", domain="com.microsoft", run=reference.forward, bind=_bind_dynamic,
        accepts=_accepts("lstm"), rtol=1e-3, atol=1e-3,
    ),
)  # fmt: skip
