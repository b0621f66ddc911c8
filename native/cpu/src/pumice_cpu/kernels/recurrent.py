"""LSTM and GRU of the Plan, with ONNX's default activations and no clip, the gradient of the LSTM, and onnxruntime's
DynamicQuantizeLSTM.

Constant weights are packed when the plan is compiled; weights that are fed are packed at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Arrays, Forward, Kernel, Node, Outputs
from pumice.ops.recurrent import OPS as CORE

if TYPE_CHECKING:
    from pumice_cpu.recurrent import Cell, Direction, Weights
    from pumice_cpu.recurrent_u8 import Weights as WeightsU8

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


Run = Callable[["Sequence[Direction]", Array, "Array | None"], None]
"""Directions over x (time, batch, input), perhaps with lengths."""


def _layer(cell: Cell, node: Node, run: Run, weights: Sequence[Any], x: Array, rest: Sequence[Any]) -> Outputs:
    """Y (time, directions, batch, hidden) and the last states, in the node's layout; `rest` begins with B."""
    from pumice_cpu.arrays import empty
    from pumice_cpu.recurrent import Direction, states

    b, lengths, first_h, first_c, peepholes = [*rest, None, None, None, None, None][:5]
    layout, hidden = node.get("layout", 0), weights[0].hidden
    steps = np.ascontiguousarray(x.swapaxes(0, 1)) if layout else x
    time, batch = steps.shape[:2]
    if lengths is not None and (lengths >= time).all():
        lengths = None
    y = empty((time, len(weights), batch, hidden))
    ends = [
        states((len(weights), batch, hidden), first.swapaxes(0, 1) if layout and first is not None else first)
        for first in ((first_h, first_c) if cell == "lstm" else (first_h,))
    ]
    directions = [
        Direction(
            weights=weights[i], y=y[:, i], h=ends[0][i], c=ends[1][i] if cell == "lstm" else None,
            bias=None if b is None else b[i], peepholes=None if peepholes is None else peepholes[i],
            reverse=i == 1 or node.get("direction", "forward") == "reverse",
        )
        for i in range(len(weights))
    ]  # fmt: skip
    run(directions, steps, lengths)
    if layout:
        return tuple(v for v in (y.transpose(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends)))
    return y, *ends


def _run(cell: Cell) -> Forward:
    def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
        from pumice_cpu.recurrent import run

        return _layer(cell, node, run, _packed(cell, node, w, r), x, rest)

    return forward


def _bind(cell: Cell) -> Callable[[Node, Sequence[Any]], Forward]:
    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        constant_w, constant_r = constants[1], constants[2]
        if constant_w is None or constant_r is None or constant_w.dtype != np.float32:
            return _run(cell)
        kept: list[Weights] = []
        constant_b = constants[3] if len(constants) > 3 else None
        biases = None if constant_b is None else list(constant_b)

        def forward(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Outputs:
            from pumice_cpu.recurrent import run

            if w is not constant_w or r is not constant_r:
                return _layer(cell, node, run, _packed(cell, node, w, r), x, rest)
            if not kept:
                kept.extend(_packed(cell, node, w, r))
            if biases is not None and rest[0] is constant_b:  # the same rows every time, of which something is kept
                return _layer(cell, node, run, kept, x, (biases, *rest[1:]))
            return _layer(cell, node, run, kept, x, rest)

        return forward

    return bind


# --- 8-bit weights ----------------------------------------------------------------------------------------------------

Parameters = tuple["Array | None", ...]
"""W, R, their scales and zero points: ws, wz, rs, rz."""


def _packed_u8(w: Array, r: Array, parameters: Parameters) -> list[WeightsU8]:
    from pumice_cpu.recurrent_u8 import prepare

    def of_direction(i: int) -> tuple[Any, ...]:
        return tuple(None if p is None else p.reshape(len(w), -1)[i] for p in parameters)

    def prepared(i: int) -> WeightsU8:
        ws, wz, rs, rz = of_direction(i)
        return prepare("lstm", w[i], ws, wz, r[i], rs, rz)

    return [prepared(i) for i in range(len(w))]


def _each_u8(directions: Sequence[Direction], x: Array, lengths: Array | None) -> None:
    from pumice_cpu.recurrent_u8 import run

    for d in directions:
        run(d.weights, x, d.y, d.h, d.c, bias=d.bias, peepholes=d.peepholes, lengths=lengths, reverse=d.reverse)


def _bind_u8(node: Node, constants: Sequence[Any]) -> Forward:
    """DynamicQuantizeLSTM: weights that are the plan's constants are packed once."""
    kept: list[WeightsU8] = []

    def forward(node: Node, x: Array, w: Array, r: Array, *rest: Any) -> Outputs:
        parameters = tuple((*rest, *[None] * 9)[5:9])
        given = zip((w, r, *parameters), (*constants[1:3], *constants[8:12]), strict=False)
        if any(array is not constant for array, constant in given):
            return _layer("lstm", node, _each_u8, _packed_u8(w, r, parameters), x, rest)
        if not kept:
            kept.extend(_packed_u8(w, r, parameters))
        return _layer("lstm", node, _each_u8, kept, x, rest)

    return forward


def _run_u8(node: Node, *arrays: Any) -> Outputs:
    return _bind_u8(node, [None] * 12)(node, *arrays)


def _lstm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Sequence[bool]) -> Outputs:
    x, w, r, b, lengths, first_h, first_c, peepholes = (*inputs, *[None] * (8 - len(inputs)))[:8]
    if lengths is not None or peepholes is not None or not x.size:
        (core,) = [op.vjp for op in CORE if op.op_type == "LSTM" and op.vjp is not None]
        return tuple(core(node, inputs, outputs, grads, wanted))
    layout, hidden = node.get("layout", 0), r.shape[2]
    steps = x.swapaxes(0, 1) if layout else x
    time, batch = steps.shape[:2]
    dy = grads[0] if grads[0] is None or not layout else grads[0].transpose(1, 2, 0, 3)
    found = [
        _pulled(
            node, i, steps, w[i], r[i], None if b is None else b[i],
            [None if s is None else s[:, i] if layout else s[i] for s in (first_h, first_c)],
            np.zeros((time, batch, hidden), np.float32) if dy is None else np.ascontiguousarray(dy[:, i], np.float32),
            [None if g is None else g[:, i] if layout else g[i] for g in (*grads, None, None)[1:3]],
        )
        for i in range(len(w))
    ]  # fmt: skip
    dx, dw, dr, db, dh, dc = (list(parts) for parts in zip(*found, strict=True))
    stacked = [np.stack(parts, axis=1 if layout else 0) for parts in (dh, dc)]
    whole = sum(dx[1:], dx[0]) if wanted[0] else None
    result = [
        whole.swapaxes(0, 1) if layout and whole is not None else whole, np.stack(dw), np.stack(dr),
        None if b is None else np.stack(db), None, *stacked, None,
    ]  # fmt: skip
    return tuple(result[: len(inputs)])


def _pulled(
    node: Node, number: int, x: Array, w: Array, r: Array, b: Array | None, first: Sequence[Array | None], dy: Array,
    last: Sequence[Array | None],
) -> tuple[Array, ...]:  # fmt: skip
    """Gradients of x, W, R, B and the first states, of one direction."""
    from pumice_cpu.gemm import product
    from pumice_cpu.recurrent import lstm_gradient, states
    from pumice_cpu.rows import reduce

    shape = (x.shape[1], r.shape[1])
    reverse = number == 1 or node.get("direction", "forward") == "reverse"
    back = lstm_gradient(
        w, r, b, x, tuple(states(shape, s) for s in first), dy, tuple(states(shape, d) for d in last), reverse=reverse
    )
    columns = np.ascontiguousarray(x).reshape(len(back.gates), -1)
    bias, turned = reduce("sum", back.gates, [0], keepdims=False), back.gates.T
    dw, dr = product(turned, columns), product(turned, back.states)
    return product(back.gates, w).reshape(x.shape), dw, dr, np.tile(bias, 2), back.h, back.c


def _record(op_type: str, cell: Cell, since: int) -> Kernel:
    return Kernel(
        op_type=op_type, since=since, run=_run(cell), bind=_bind(cell), accepts=_accepts(cell), rtol=1e-4, atol=1e-5
    )


KERNELS = (
    _record("LSTM", "lstm", 1),
    _record("GRU", "gru", 3),
    Kernel(
        op_type="DynamicQuantizeLSTM",
        domain="com.microsoft",
        run=_run_u8,
        bind=_bind_u8,
        accepts=_accepts("lstm"),
        rtol=1e-4,
        atol=1e-4,
    ),
    Kernel(op_type="LSTM", part="vjp", run=_lstm_vjp, accepts=_accepts("lstm"), rtol=1e-4, atol=1e-4),
)
