"""LSTM, and GRU with linear_before_reset, of the Plan in float32, with ONNX's default activations and no clip.

Constant weights are made ready when they are first used; weights that are fed, at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cuda import reference

if TYPE_CHECKING:
    from pumice_cuda.recurrent import Cell, Weights

DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh")}
FLOAT = np.dtype(np.float32)


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
    states = [
        _started(s, layout, (count, batch, hidden)) for s in ((first_h, first_c) if cell == "lstm" else (first_h,))
    ]
    for i, direction in enumerate(weights):
        reverse = i == 1 or node.get("direction", "forward") == "reverse"
        run(
            direction, steps, y[:, i], *(s[i] for s in states), bias=None if b is None else b[i], lengths=lengths,
            peepholes=None if peepholes is None else peepholes[i], reverse=reverse,
        )  # fmt: skip
    if layout:
        return tuple(v for v in (y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states)))
    return y, *states


def _started(initial: Array | None, layout: int, shape: tuple[int, int, int]) -> Any:
    """(directions, batch, hidden): a copy of the first states, or zeros."""
    import cupy

    if initial is None:
        return cupy.zeros(shape, np.float32)
    return cupy.array(initial.swapaxes(0, 1) if layout else initial, order="C")


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
        kept: list[Weights] = []

        def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
            if w is not known_w or r is not known_r or not _fits(x, w, r):
                return _run(cell)(node, x, w, r, *rest)
            if not kept:
                kept.extend(_prepared(cell, w, r))
            return _layer(cell, node, kept, x, rest)

        return forward

    return bind


def _record(op_type: str, cell: Cell, since: int) -> Kernel:
    return Kernel(
        op_type=op_type, since=since, run=_run(cell), bind=_bind(cell), accepts=_accepts(cell), rtol=1e-4, atol=1e-4
    )


KERNELS = (_record("LSTM", "lstm", 1), _record("GRU", "gru", 3))
