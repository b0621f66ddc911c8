"""LSTM and GRU of the Plan, with ONNX's default activations and no clip. Constant weights are packed when the plan is
compiled; weights that are fed are packed at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs

if TYPE_CHECKING:
    from pumice_cpu.recurrent import Cell, Weights

DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh")}


def _accepts(cell: Cell) -> Callable[[Node], str | None]:
    def accepts(node: Node) -> str | None:
        names = tuple(name.lower() for name in node.get("activations") or ())
        if names and set(zip(names, DEFAULTS[cell] * 2, strict=False)) != set(
            zip(DEFAULTS[cell], DEFAULTS[cell], strict=True)
        ):
            return "its activations are not the default ones"
        if node.get("clip") or node.get("input_forget"):
            return "it clips, or couples its gates"
        return None

    return accepts


def _packed(cell: Cell, node: Node, w: Array, r: Array) -> list[Weights]:
    from pumice_cpu.recurrent import prepare

    linear = bool(node.get("linear_before_reset", 0))
    return [prepare(cell, w[i], r[i], linear_before_reset=linear) for i in range(len(w))]


def _layer(cell: Cell, node: Node, weights: Sequence[Weights], x: Array, rest: Sequence[Array | None]) -> Outputs:
    """Y (time, directions, batch, hidden) and the last states, in the node's layout; `rest` begins with B."""
    from pumice_cpu.arrays import empty
    from pumice_cpu.recurrent import run, states

    b, lengths, first_h, first_c, peepholes = [*rest, None, None, None, None, None][:5]
    layout, hidden = node.get("layout", 0), weights[0].hidden
    steps = np.ascontiguousarray(x.swapaxes(0, 1)) if layout else x
    time, batch = steps.shape[:2]
    if lengths is not None and (lengths >= time).all():
        lengths = None
    y, ends = empty((time, len(weights), batch, hidden)), []
    for i, direction in enumerate(weights):
        h, c = (
            states((batch, hidden), None if s is None else (s[:, i] if layout else s[i])) for s in (first_h, first_c)
        )
        reverse = i == 1 or node.get("direction", "forward") == "reverse"
        run(
            direction, steps, y[:, i], h, c if cell == "lstm" else None, lengths=lengths, reverse=reverse,
            bias=None if b is None else b[i], peepholes=None if peepholes is None else peepholes[i],
        )  # fmt: skip
        ends.append((h, c) if cell == "lstm" else (h,))
    finals = [np.stack([end[j] for end in ends]) for j in range(len(ends[0]))]
    if layout:
        return tuple(v for v in (y.transpose(2, 0, 1, 3), *(f.swapaxes(0, 1) for f in finals)))
    return y, *finals


def _run(cell: Cell) -> Forward:
    def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
        return _layer(cell, node, _packed(cell, node, w, r), x, rest)

    return forward


def _bind(cell: Cell) -> Callable[[Node, Sequence[Any]], Forward]:
    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        constant_w, constant_r = constants[1], constants[2]
        if constant_w is None or constant_r is None or constant_w.dtype != np.float32:
            return _run(cell)
        kept: list[Weights] = []

        def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
            if w is not constant_w or r is not constant_r:
                return _layer(cell, node, _packed(cell, node, w, r), x, rest)
            if not kept:
                kept.extend(_packed(cell, node, w, r))
            return _layer(cell, node, kept, x, rest)

        return forward

    return bind


def _record(op_type: str, cell: Cell, since: int) -> Kernel:
    return Kernel(
        op_type=op_type, since=since, run=_run(cell), bind=_bind(cell), accepts=_accepts(cell), rtol=1e-4, atol=1e-5
    )


KERNELS = (_record("LSTM", "lstm", 1), _record("GRU", "gru", 3))
