"""Recurrent networks. For every time step, with W x + b computed for all steps at once:

    RNN   h = f(W x + R h + b)
    GRU   z, r = f(W x + R h + b);  n = g(W x + r (R h + Rb) + Wb)        if `linear_before_reset`
                                    n = g(W x + R (r h) + b)              otherwise;   h = (1 - z) n + z h
    LSTM  i, o, f, c~ = W x + R h + b with peepholes P c on i, f (old cell) and o (new cell);
          c = f(f) c + f(i) g(c~);  h = f(o) h(c)

The loop runs over time only and is vectorised over the batch. Weights are stacked by gate in the order above, with a
leading axis of directions; sequences shorter than the batch's longest keep their last state and output zeros beyond.
Layout 0 is (time, batch, size), layout 1 (batch, time, size).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops import activation
from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic

Activation = Callable[[Array], Any]
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]
"""(projected input of one step, state) -> new state; the first state is the output."""

_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[float, ...]]] = {
    "sigmoid": (activation.sigmoid, (), ()),
    "tanh": (np.tanh, (), ()),
    "relu": (activation.relu, (), ()),
    "softplus": (activation.softplus, (), ()),
    "softsign": (activation.softsign, (), ()),
    "leakyrelu": (activation.leaky_relu, ("alpha",), (0.01,)),
    "thresholdedrelu": (activation.thresholded_relu, ("alpha",), (1.0,)),
    "elu": (activation.elu, ("alpha",), (1.0,)),
    "hardsigmoid": (activation.hard_sigmoid, ("alpha", "beta"), (0.2, 0.5)),
    "affine": (lambda x, alpha, beta: alpha * x + beta, ("alpha", "beta"), (1.0, 0.0)),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), ("alpha", "beta"), (1.0, 1.0)),
}


def _activations(node: Node, default: Sequence[str], directions: int) -> list[list[Activation]]:
    """The functions of each direction, with their parameters taken in turn from `activation_alpha` and `_beta`."""
    names = node.get("activations") or list(default) * directions
    given = {"alpha": list(node.get("activation_alpha") or []), "beta": list(node.get("activation_beta") or [])}
    chosen: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise UnsupportedOp(f"{node} has activation '{name}'; known are {', '.join(sorted(_ACTIVATIONS))}")
        function, parameters, defaults = _ACTIVATIONS[name.lower()]
        values = {p: given[p].pop(0) if given[p] else d for p, d in zip(parameters, defaults, strict=True)}
        chosen.append(partial(function, **values))
    count = len(default)
    return [chosen[i * count : (i + 1) * count] for i in range(directions)]


def _clipped(node: Node) -> Activation:
    limit = node.get("clip", 0.0)
    return (lambda x: np.clip(x, -limit, limit)) if limit else (lambda x: x)


def _run_direction(
    x: Array, w: Array, bias: Array, state: tuple[Array, ...], step: Step, lengths: Array | None, reverse: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Outputs (time, batch, hidden) and the last state of one direction."""
    time, batch = x.shape[:2]
    projected = (x.reshape(time * batch, -1) @ w.T + bias).reshape(time, batch, -1)
    y = np.zeros((time, batch, state[0].shape[-1]), x.dtype)
    for t in range(time - 1, -1, -1) if reverse else range(time):
        new = step(projected[t], state)
        if lengths is None:
            state, y[t] = new, new[0]
        else:
            alive = (t < lengths)[:, None]
            state = tuple(np.where(alive, n, old) for n, old in zip(new, state, strict=True))
            y[t] = np.where(alive, new[0], 0)
    return y, state


def _run(
    node: Node,
    x: Array,
    w: Array,
    lengths: Array | None,
    initial: Sequence[Array | None],
    direction: Callable[[int], tuple[Array, Step]],
) -> Outputs:
    """Y (time, directions, batch, hidden), then each last state (directions, batch, hidden), in the node's layout."""
    layout, hidden = node.get("layout", 0), node.attributes["hidden_size"]
    steps = wide(x).swapaxes(0, 1) if layout else wide(x)
    batch = steps.shape[1]
    if lengths is not None and (lengths >= steps.shape[0]).all():
        lengths = None
    outputs, states = [], []
    for i in range(w.shape[0]):
        zero = np.zeros((batch, hidden), steps.dtype)
        state = tuple(zero if s is None else wide(s[:, i] if layout else s[i]) for s in initial)
        bias, step = direction(i)
        reverse = i == 1 or node.get("direction", "forward") == "reverse"
        y, last = _run_direction(steps, wide(w[i]), bias, state, step, lengths, reverse)
        outputs.append(y)
        states.append(last)
    y = np.stack(outputs, axis=1)
    ends = [np.stack(parts) for parts in zip(*states, strict=True)]
    if layout:
        y, ends = y.transpose(2, 0, 1, 3), [end.swapaxes(0, 1) for end in ends]
    return tuple(v.astype(x.dtype, copy=False) for v in (y, *ends))


def _biases(b: Array | None, i: int, gates: int, hidden: int, dtype: Any) -> tuple[Array, Array]:
    """The input's and the recurrence's bias of one direction."""
    if b is None:
        return np.zeros(gates * hidden, dtype), np.zeros(gates * hidden, dtype)
    return wide(b[i, : gates * hidden]), wide(b[i, gates * hidden :])


def _rnn(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
) -> Outputs:
    hidden, clip = node.attributes["hidden_size"], _clipped(node)
    functions = _activations(node, ["Tanh"], w.shape[0])

    def direction(i: int) -> tuple[Array, Step]:
        wb, rb = _biases(b, i, 1, hidden, wide(x).dtype)
        recurrent, (f,) = np.ascontiguousarray(wide(r[i]).T), functions[i]
        return wb + rb, lambda p, state: (f(clip(p + state[0] @ recurrent)),)

    return _run(node, x, w, lengths, [h], direction)


def _gru(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
) -> Outputs:
    hidden, clip, linear = node.attributes["hidden_size"], _clipped(node), node.get("linear_before_reset", 0)
    functions = _activations(node, ["Sigmoid", "Tanh"], w.shape[0])

    def direction(i: int) -> tuple[Array, Step]:
        wb, rb = _biases(b, i, 3, hidden, wide(x).dtype)
        recurrent, (f, g) = np.ascontiguousarray(wide(r[i]).T), functions[i]
        gates, candidate = recurrent[:, : 2 * hidden], recurrent[:, 2 * hidden :]
        inner = rb[2 * hidden :] if linear else np.zeros(hidden, rb.dtype)
        outer = wb + rb - np.concatenate([np.zeros(2 * hidden, rb.dtype), inner])

        def step(p: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (old,) = state
            zr = f(clip(p[:, : 2 * hidden] + old @ gates))
            z, reset = zr[:, :hidden], zr[:, hidden:]
            fed = reset * (old @ candidate + inner) if linear else (reset * old) @ candidate
            n = g(clip(p[:, 2 * hidden :] + fed))
            return ((1 - z) * n + z * old,)

        return outer, step

    return _run(node, x, w, lengths, [h], direction)


def _lstm(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
    c: Array | None = None,
    p: Array | None = None,
) -> Outputs:
    hidden, clip, coupled = node.attributes["hidden_size"], _clipped(node), node.get("input_forget", 0)
    functions = _activations(node, ["Sigmoid", "Tanh", "Tanh"], w.shape[0])

    def direction(i: int) -> tuple[Array, Step]:
        wb, rb = _biases(b, i, 4, hidden, wide(x).dtype)
        recurrent, (f, g, out) = np.ascontiguousarray(wide(r[i]).T), functions[i]
        peep_i, peep_o, peep_f = (0, 0, 0) if p is None else np.split(wide(p[i]), 3)

        def step(projected: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            old, cell = state
            gate_i, gate_o, gate_f, gate_c = np.split(projected + old @ recurrent, 4, axis=1)
            admit = f(clip(gate_i + peep_i * cell))
            keep = 1 - admit if coupled else f(clip(gate_f + peep_f * cell))
            cell = keep * cell + admit * g(clip(gate_c))
            return f(clip(gate_o + peep_o * cell)) * out(cell), cell

        return wb + rb, step

    return _run(node, x, w, lengths, [h, c], direction)


def _cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """Every step multiplies the input by W and the state by R."""
    x, w, r = inputs[0], inputs[1], inputs[2]
    assert x is not None
    steps = x[0] * x[1]
    weights = [w, r, *(s for i, s in enumerate(inputs) if i in (3, 7))]
    return OpCost(
        macs=steps * (elements(w) + elements(r)),
        params=sum(map(elements, weights)),
        bytes=traffic(node, inputs, outputs).bytes,
    )


OPS = (
    Op("RNN", forward=_rnn, cost=_cost),
    Op("GRU", since=3, forward=_gru, cost=_cost),
    Op("LSTM", forward=_lstm, cost=_cost),
)
