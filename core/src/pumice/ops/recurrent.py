"""Recurrent networks. For every time step, with W x + b computed for all steps at once:

    RNN   h = f(W x + R h + b)
    GRU   z, r = f(W x + R h + b);  n = g(W x + r (R h + Rb) + Wb)        if `linear_before_reset`
                                    n = g(W x + R (r h) + b)              otherwise;   h = (1 - z) n + z h
    LSTM  i, o, f, c~ = W x + R h + b with peepholes P c on i, f (old cell) and o (new cell);
          c = f(f) c + f(i) g(c~);  h = f(o) h(c)

The loop runs over time only and is vectorised over the batch. Weights are stacked by gate in the order above, with a
leading axis of directions; sequences shorter than the batch's longest keep their last state and output zeros beyond.
Layout 0 is (time, batch, size), layout 1 (batch, time, size).

The gradient runs the loop once more to have every state. With these a cell is linearised, all steps at once, and the
loop backwards through time only applies it: the gradient of a new state becomes those of the old state and of what
entered the gates. All steps together then give those of the weights, one product each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops import activation
from pumice.ops.channels import Channels, Edit, Kept, Port, Same, Site, Summed, Tie, into
from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace
from pumice.ops.matmul import product
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic

State = tuple[Array, ...]
Step = Callable[[Array, State], State]
"""(projected input of one step, state) -> new state; the first state is the output."""


@attrs.frozen(eq=False)
class Linear:
    """A cell around the states that it was in, steps and batch along one axis."""

    coefficients: State
    """What `Cell.apply` multiplies gradients by."""
    reset: Array | None = None
    """What the last rows of R were multiplied by, where that was not the state itself."""
    cells: State = ()
    """What the peepholes of the input and forget gate and of the output gate saw."""


@attrs.frozen(eq=False)
class Pulled:
    """The gradients of one step of a cell."""

    state: State
    """Of the state before it."""
    gates: Array
    """Of the projected input, (batch, gates * hidden)."""
    recurrent: Array
    """Of the recurrence's product and bias, of the same shape."""


@attrs.frozen(eq=False)
class Cell:
    """One direction of a network."""

    bias: Array
    """Added to the projected input."""
    step: Step
    linearise: Callable[[Array, State], Linear]
    """(projected input, state before)"""
    apply: Callable[[State, State], Pulled]
    """(coefficients of one step, gradient of the state after it)"""


@attrs.frozen(eq=False)
class Activation:
    """A function f with its parameters, and its slope from x and y = f(x)."""

    function: Callable[..., Any]
    slope_of: Callable[..., Any]
    parameters: dict[str, float]

    def __call__(self, x: Any) -> Any:
        return self.function(x, **self.parameters)

    def slope(self, x: Any, y: Any) -> Any:
        return self.slope_of(x, y, **self.parameters)


def _slope_of(name: str) -> Callable[..., Any]:
    return lambda x, y, **parameters: activation.SLOPES[name](x, **parameters)


_ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...], tuple[float, ...]]] = {
    "sigmoid": (activation.sigmoid, lambda x, y: y * (1 - y), (), ()),
    "tanh": (np.tanh, lambda x, y: 1 - y * y, (), ()),
    "relu": (activation.relu, lambda x, y: x > 0, (), ()),
    "softplus": (activation.softplus, _slope_of("Softplus"), (), ()),
    "softsign": (activation.softsign, _slope_of("Softsign"), (), ()),
    "leakyrelu": (activation.leaky_relu, _slope_of("LeakyRelu"), ("alpha",), (0.01,)),
    "thresholdedrelu": (activation.thresholded_relu, _slope_of("ThresholdedRelu"), ("alpha",), (1.0,)),
    "elu": (activation.elu, _slope_of("Elu"), ("alpha",), (1.0,)),
    "hardsigmoid": (activation.hard_sigmoid, _slope_of("HardSigmoid"), ("alpha", "beta"), (0.2, 0.5)),
    "affine": (
        lambda x, alpha, beta: alpha * x + beta,
        lambda x, y, alpha, beta: np.full_like(x, alpha),
        ("alpha", "beta"),
        (1.0, 0.0),
    ),
    "scaledtanh": (
        lambda x, alpha, beta: alpha * np.tanh(beta * x),
        lambda x, y, alpha, beta: beta * (alpha - y * y / alpha),
        ("alpha", "beta"),
        (1.0, 1.0),
    ),
}


def _activations(node: Node, default: Sequence[str], directions: int) -> list[list[Activation]]:
    """The functions of each direction, with their parameters taken in turn from `activation_alpha` and `_beta`."""
    names = node.get("activations") or list(default) * directions
    given = {"alpha": list(node.get("activation_alpha") or []), "beta": list(node.get("activation_beta") or [])}
    chosen: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise UnsupportedOp(f"{node} has activation '{name}'; known are {', '.join(sorted(_ACTIVATIONS))}")
        function, slope, parameters, defaults = _ACTIVATIONS[name.lower()]
        values = {p: given[p].pop(0) if given[p] else d for p, d in zip(parameters, defaults, strict=True)}
        chosen.append(Activation(function, slope, values))
    count = len(default)
    return [chosen[i * count : (i + 1) * count] for i in range(directions)]


def _clipped(node: Node) -> Callable[[Any], Any]:
    limit = node.get("clip", 0.0)
    return (lambda x: np.clip(x, -limit, limit)) if limit else (lambda x: x)


def _slope(node: Node, f: Activation, x: Any, y: Any) -> Any:
    """Of y = f(clip(x))."""
    limit = node.get("clip", 0.0)
    return f.slope(np.clip(x, -limit, limit), y) * (np.abs(x) <= limit) if limit else f.slope(x, y)


def _run_direction(
    x: Array, w: Array, bias: Array, state: tuple[Array, ...], step: Step, lengths: Array | None, reverse: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Outputs (time, batch, hidden) and the last state of one direction."""
    time, batch = x.shape[:2]
    projected = (product(x.reshape(time * batch, -1), w.T) + bias).reshape(time, batch, -1)
    y = namespace(x).zeros((time, batch, state[0].shape[-1]), x.dtype)
    for t in range(time - 1, -1, -1) if reverse else range(time):
        new = step(projected[t], state)
        if lengths is None:
            state, y[t] = new, new[0]
        else:
            alive = (t < lengths)[:, None]
            state = tuple(np.where(alive, n, old) for n, old in zip(new, state, strict=True))
            y[t] = np.where(alive, new[0], 0)
    return y, state


def run_cells(
    node: Node,
    x: Array,
    w: Array,
    lengths: Array | None,
    initial: Sequence[Array | None],
    direction: Callable[[int], Cell],
) -> Outputs:
    """Y (time, directions, batch, hidden), then each last state (directions, batch, hidden), in the node's layout."""
    layout, hidden = node.get("layout", 0), node.attributes["hidden_size"]
    steps = wide(x).swapaxes(0, 1) if layout else wide(x)
    batch = steps.shape[1]
    if lengths is not None and (lengths >= steps.shape[0]).all():
        lengths = None
    outputs, states = [], []
    for i in range(w.shape[0]):
        zero = namespace(steps).zeros((batch, hidden), steps.dtype)
        state = tuple(zero if s is None else wide(s[:, i] if layout else s[i]) for s in initial)
        cell = direction(i)
        y, last = _run_direction(steps, wide(w[i]), cell.bias, state, cell.step, lengths, _is_reverse(node, i))
        outputs.append(y)
        states.append(last)
    y = np.stack(outputs, axis=1)
    ends = [np.stack(parts) for parts in zip(*states, strict=True)]
    if layout:
        y, ends = y.transpose(2, 0, 1, 3), [end.swapaxes(0, 1) for end in ends]
    return tuple(v.astype(x.dtype, copy=False) for v in (y, *ends))


def _is_reverse(node: Node, direction: int) -> bool:
    return direction == 1 or bool(node.get("direction", "forward") == "reverse")


def _biases(b: Array | None, i: int, gates: int, hidden: int, x: Array) -> tuple[Array, Array]:
    """The input's and the recurrence's bias of one direction."""
    if b is None:
        none = namespace(x).zeros(gates * hidden, wide(x).dtype)
        return none, none
    return wide(b[i, : gates * hidden]), wide(b[i, gates * hidden :])


Directions = Callable[[int], Cell]


def _rnn(node: Node, x: Array, w: Array, r: Array, b: Array | None = None, *_: Any) -> Directions:
    hidden, clip = node.attributes["hidden_size"], _clipped(node)
    functions = _activations(node, ["Tanh"], w.shape[0])

    def direction(i: int) -> Cell:
        wb, rb = _biases(b, i, 1, hidden, x)
        recurrent, (f,) = namespace(r).ascontiguousarray(wide(r[i]).T), functions[i]

        def step(p: Array, state: State) -> State:
            return (f(clip(p + product(state[0], recurrent))),)

        def linearise(p: Array, state: State) -> Linear:
            before = p + product(state[0], recurrent)
            return Linear((_slope(node, f, before, f(clip(before))),))

        def apply(coefficients: State, grads: State) -> Pulled:
            gates = grads[0] * coefficients[0]
            return Pulled((product(gates, recurrent.T),), gates, gates)

        return Cell(wb + rb, step, linearise, apply)

    return direction


def _gru(node: Node, x: Array, w: Array, r: Array, b: Array | None = None, *_: Any) -> Directions:
    hidden, clip, linear = node.attributes["hidden_size"], _clipped(node), node.get("linear_before_reset", 0)
    functions = _activations(node, ["Sigmoid", "Tanh"], w.shape[0])

    def direction(i: int) -> Cell:
        wb, rb = _biases(b, i, 3, hidden, x)
        recurrent, (f, g) = namespace(r).ascontiguousarray(wide(r[i]).T), functions[i]
        gates, candidate = recurrent[:, : 2 * hidden], recurrent[:, 2 * hidden :]
        inner = rb[2 * hidden :] if linear else namespace(rb).zeros(hidden, rb.dtype)
        outer = wb + rb - np.concatenate([namespace(rb).zeros(2 * hidden, rb.dtype), inner])

        def step(p: Array, state: State) -> State:
            (old,) = state
            zr = f(clip(p[:, : 2 * hidden] + product(old, gates)))
            z, reset = zr[:, :hidden], zr[:, hidden:]
            fed = reset * (product(old, candidate) + inner) if linear else product(reset * old, candidate)
            n = g(clip(p[:, 2 * hidden :] + fed))
            return ((1 - z) * n + z * old,)

        def linearise(p: Array, state: State) -> Linear:
            (old,) = state
            before = p[:, : 2 * hidden] + product(old, gates)
            zr = f(clip(before))
            z, reset = zr[:, :hidden], zr[:, hidden:]
            fed = product(old, candidate) + inner if linear else product(reset * old, candidate)
            entered = p[:, 2 * hidden :] + (reset * fed if linear else fed)
            n, slope = g(clip(entered)), _slope(node, f, before, zr)
            to_n, to_z = (1 - z) * _slope(node, g, entered, n), (old - n) * slope[:, :hidden]
            to_reset = (fed if linear else old) * slope[:, hidden:]
            return Linear((to_n, to_z, to_reset, z, reset), None if linear else reset * old)

        def apply(coefficients: State, grads: State) -> Pulled:
            (to_n, to_z, to_reset, z, reset), (dh,) = coefficients, grads
            dn = dh * to_n
            dproduct = dn * reset if linear else dn
            dfed = product(dproduct, candidate.T)
            dzr = np.concatenate([dh * to_z, (dn if linear else dfed) * to_reset], axis=1)
            dold = dh * z + product(dzr, gates.T) + (dfed if linear else dfed * reset)
            entered = np.concatenate([dzr, dn], axis=1)
            return Pulled((dold,), entered, np.concatenate([dzr, dproduct], axis=1) if linear else entered)

        return Cell(outer, step, linearise, apply)

    return direction


def lstm_cells(node: Node, x: Array, w: Array, r: Array, b: Array | None = None, *rest: Any) -> Directions:
    p = rest[3] if len(rest) > 3 else None
    hidden, clip, coupled = node.attributes["hidden_size"], _clipped(node), node.get("input_forget", 0)
    functions = _activations(node, ["Sigmoid", "Tanh", "Tanh"], w.shape[0])

    def direction(i: int) -> Cell:
        wb, rb = _biases(b, i, 4, hidden, x)
        recurrent, (f, g, out) = namespace(r).ascontiguousarray(wide(r[i]).T), functions[i]
        peep_i, peep_o, peep_f = (0, 0, 0) if p is None else np.split(wide(p[i]), 3)

        def step(projected: Array, state: State) -> State:
            old, cell = state
            gate_i, gate_o, gate_f, gate_c = np.split(projected + product(old, recurrent), 4, axis=1)
            admit = f(clip(gate_i + peep_i * cell))
            keep = 1 - admit if coupled else f(clip(gate_f + peep_f * cell))
            cell = keep * cell + admit * g(clip(gate_c))
            return f(clip(gate_o + peep_o * cell)) * out(cell), cell

        def linearise(projected: Array, state: State) -> Linear:
            old, cell = state
            gate_i, gate_o, gate_f, gate_c = np.split(projected + product(old, recurrent), 4, axis=1)
            at_i, at_f = gate_i + peep_i * cell, gate_f + peep_f * cell
            admit, new = f(clip(at_i)), g(clip(gate_c))
            keep = 1 - admit if coupled else f(clip(at_f))
            after = keep * cell + admit * new
            at_o, shown = gate_o + peep_o * after, out(after)
            let = f(clip(at_o))
            to_gates = (  # from the gradient of the new cell, but the output gate from that of the state
                (new - cell if coupled else new) * _slope(node, f, at_i, admit),
                shown * _slope(node, f, at_o, let),
                np.zeros_like(cell) if coupled else cell * _slope(node, f, at_f, keep),
                admit * _slope(node, g, gate_c, new),
            )
            return Linear((*to_gates, let * out.slope(after, shown), keep), cells=(cell, after))

        def apply(coefficients: State, grads: State) -> Pulled:
            (to_i, to_o, to_f, to_c, to_cell, keep), (dh, dc) = coefficients, grads
            do = dh * to_o
            dcell = dh * to_cell
            dcell += dc
            if p is not None:
                dcell += do * peep_o
            di, df = dcell * to_i, dcell * to_f
            gates = np.concatenate([di, do, df, dcell * to_c], axis=1)
            dcell *= keep
            if p is not None:
                dcell += di * peep_i + df * peep_f
            return Pulled((product(gates, recurrent.T), dcell), gates, gates)

        return Cell(wb + rb, step, linearise, apply)

    return direction


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


# --- gradients --------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Back:
    """What one direction sends back, all steps together."""

    x: Array
    w: Array
    r: Array
    wb: Array
    rb: Array
    peepholes: Any
    state: State


def _pull_direction(
    x: Array, w: Array, cell: Cell, first: State, lengths: Array | None, reverse: bool, dy: Array, dlast: State
) -> _Back:
    time, batch = x.shape[:2]
    projected = (product(x.reshape(time * batch, -1), w.T) + cell.bias).reshape(time, batch, -1)
    order = range(time - 1, -1, -1) if reverse else range(time)
    before: dict[int, State] = {}
    state = first
    for t in order:
        before[t], new = state, cell.step(projected[t], state)
        if lengths is not None:
            alive = (t < lengths)[:, None]
            new = tuple(np.where(alive, n, old) for n, old in zip(new, state, strict=True))
        state = new
    flat = [np.concatenate([before[t][k] for t in range(time)]) for k in range(len(first))]
    linear = cell.linearise(projected.reshape(time * batch, -1), tuple(flat))
    coefficients = [c.reshape(time, batch, -1) for c in linear.coefficients]
    grads, found = dlast, dict[int, Pulled]()
    for t in reversed(order):
        arriving: State = (grads[0] + dy[t], *grads[1:])
        passed: list[Any] = [0] * len(grads)
        if lengths is not None:
            alive = (t < lengths)[:, None]
            arriving, passed = tuple(g * alive for g in arriving), [g * ~alive for g in grads]
        found[t] = cell.apply(tuple(c[t] for c in coefficients), arriving)
        grads = found[t].state if lengths is None else tuple(g + k for g, k in zip(found[t].state, passed, strict=True))
    gates = recurrent = np.concatenate([found[t].gates for t in range(time)])
    if found[0].recurrent is not found[0].gates:
        recurrent = np.concatenate([found[t].recurrent for t in range(time)])
    hidden, r = flat[0].shape[1], product(recurrent.T, flat[0])
    if linear.reset is not None:
        r[2 * hidden :] = product(recurrent[:, 2 * hidden :].T, linear.reset)
    peepholes = None
    if linear.cells:
        seen = (linear.cells[0], linear.cells[1], linear.cells[0])
        parts = np.split(gates[:, : 3 * hidden], 3, axis=1)
        peepholes = np.concatenate([(part * c).sum(axis=0) for part, c in zip(parts, seen, strict=True)])
    return _Back(
        x=product(gates, w).reshape(x.shape),
        w=product(gates.T, x.reshape(time * batch, -1)),
        r=r,
        wb=gates.sum(axis=0),
        rb=recurrent.sum(axis=0),
        peepholes=peepholes,
        state=grads,
    )


def _vjp(directions: Callable[..., Directions], states: int) -> Vjp:
    """Of a network with this many states: those of x, W, R, B, the first states and the peepholes."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        x, w, r, b, lengths, *rest = (*inputs, *[None] * (8 - len(inputs)))[:8]

        def swap(v: Any) -> Any:
            return v.swapaxes(0, 1) if node.get("layout", 0) else v

        steps, direction = swap(x), directions(node, *inputs)
        batch, hidden, kind = steps.shape[1], r.shape[2], x.dtype
        dy = grads[0] if grads[0] is None or not node.get("layout", 0) else grads[0].transpose(1, 2, 0, 3)
        found = []
        for i in range(len(w)):
            zero = namespace(steps).zeros((batch, hidden), steps.dtype)
            first = tuple(zero if s is None else swap(s)[i] for s in rest[:states])
            last = tuple(zero if g is None else swap(g)[i] for g in (*grads, None, None)[1 : 1 + states])
            each = np.zeros_like(steps, shape=(*steps.shape[:2], hidden)) if dy is None else dy[:, i]
            found.append(_pull_direction(steps, w[i], direction(i), first, lengths, _is_reverse(node, i), each, last))
        dx = swap(sum(back.x for back in found)) if wanted[0] else None
        dw, dr = np.stack([back.w for back in found]), np.stack([back.r for back in found])
        db = None if b is None else np.stack([np.concatenate([back.wb, back.rb]) for back in found])
        firsts = [swap(np.stack([back.state[s] for back in found])).astype(kind) for s in range(states)]
        peepholes = [np.stack([back.peepholes for back in found])] if states > 1 else []
        return [dx, dw, dr, db, None, *firsts, *peepholes][: len(inputs)]

    return Vjp(run, wrt=(0, 1, 2, 3, 5, 6, 7), outputs=())


def _forward(directions: Callable[..., Directions], states: int) -> Callable[..., Outputs]:
    def run(node: Node, *inputs: Any) -> Outputs:
        lengths, *initial = (*inputs, *[None] * 4)[4 : 5 + states]
        return run_cells(node, inputs[0], inputs[1], lengths, initial, directions(node, *inputs))

    return run


# --- channels ---------------------------------------------------------------------------------------------------------


def _channel_ties(site: Site) -> Iterator[Tie]:
    """Hidden unit h has a row in every gate's block of W, R, B and P, a column of R, and a place in every state.

    A unit without influence is one whose column of R is zero. Both directions lose the same units.
    """
    hidden = site.size(2, 2)
    if hidden is None:
        return
    yield Same(into(0, 2), into(1, 2))
    yield Summed(into(0, 2))
    yield Summed(into(2, 2))
    for index, axis in ((1, 1), (2, 1), (3, 1), (7, 1)):
        rows = site.size(index, axis)
        if rows is not None:
            yield Same(into(index, axis), into(2, 2), np.arange(rows), np.arange(rows) % hidden)
    for slot, axis in ((5, 2), (6, 2), (~0, 3), (~1, 2), (~2, 2)):
        if site.size(slot, axis) == hidden:
            yield Same(Port(slot, axis), into(2, 2))


def _hidden_edit(site: Site, kept: Kept) -> Edit | None:
    mask = kept(into(2, 2))
    return None if mask is None else Edit(attributes={"hidden_size": int(mask.sum())})


OPS = tuple(
    Op(
        name,
        since=since,
        forward=_forward(cell, states),
        vjp=_vjp(cell, states),
        cost=_cost,
        channels=Channels(_channel_ties, _hidden_edit),
    )
    for name, since, cell, states in (("RNN", 1, _rnn, 1), ("GRU", 3, _gru, 1), ("LSTM", 1, lstm_cells, 2))
)
