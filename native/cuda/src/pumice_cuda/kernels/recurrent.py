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


def _prepared(cell: Cell, w: Array, r: Array, *, rounds: bool = False) -> list[Weights]:
    from pumice_cuda.recurrent import prepare

    return [prepare(cell, w[i], r[i], rounds=rounds) for i in range(len(w))]


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


def _bind_dynamic(node: Node, constants: Sequence[Any]) -> Forward | None:
    """With the integers, scales and zero points that the plan knows."""
    from pumice_cuda.recurrent import units_of_block

    known = [[*constants, *[None] * 12][i] for i in DYNAMIC_WEIGHTS]
    if any(v is None for v in known) or units_of_block(known[1].shape[1]) is None:
        return None
    kept: list[Weights] = []

    def forward(node: Node, x: Array, *rest: Any) -> Outputs:
        from pumice_cuda.quantize import dequantize, dynamic_quantize

        arrays = [*(x, *rest), *[None] * 12]
        if any(arrays[i] is not v for i, v in zip(DYNAMIC_WEIGHTS, known, strict=True)) or not x.size:
            return reference.forward(node, x, *rest)
        if not kept:
            w, r, *parameters = known
            kept.extend(_prepared("lstm", _real(w, *parameters[:2]), _real(r, *parameters[2:]), rounds=True))
        return _layer("lstm", node, kept, dequantize(*dynamic_quantize(x)), arrays[3:8])

    return forward


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
