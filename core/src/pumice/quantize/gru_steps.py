"""A GRU spelt out in standard integer operators, for runtimes to compute where no GRU of integers exists.

    p = (q(X) W + b) of all steps at once, q being DynamicQuantizeLinear and the product MatMulInteger
    Scan over the steps:   s = q(h) R,   z = sigmoid(p_z + s_z),   r = sigmoid(p_r + s_r)
                           n = tanh(p_h + r (s_h + Rb_h))  or, where the reset comes first,  tanh(p_h + q(r h) R_h)
                           h = (1 - z) n + z h

The state gets its range at every step and stays real; rows that are over keep it and give zeros. Per direction, one
Scan; a direction that runs backwards scans from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, constant, fresh_name

DEFAULTS = ("sigmoid", "tanh")
GATES = 3


@attrs.frozen(eq=False)
class Matrix:
    """8-bit weights of all directions: integers (directions, inputs, 3 hidden) and a scale an output."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    """(directions, 3 hidden)."""


def gru_refusal(node: ir.Node) -> str | None:
    """Why a GRU cannot be spelt out, or None."""
    names = [str(name).lower() for name in attribute(node, "activations", ())]
    if any(name != DEFAULTS[i % 2] for i, name in enumerate(names)):
        return "its activations are not the default ones"
    if attribute(node, "clip", 0.0) or attribute(node, "layout", 0):
        return "it clips, or has its batch first"
    if len(node.inputs) > 3 and node.inputs[3] is not None and constant(node.inputs[3]) is None:
        return "its bias is computed while the model runs"
    return None


def spell_out(model: ir.Model, node: ir.Node, w: Matrix, r: Matrix) -> None:
    """Put the operators, named after the GRU, in its place."""
    given = [*node.inputs, *[None] * (6 - len(node.inputs))]
    layer = _Layer(model, node, given[0], given[4], given[5])
    bias = constant(given[3])
    directions = [
        layer.direction(i, w, r, None if bias is None else np.asarray(bias[i], np.float32))
        for i in range(len(w.integers))
    ]
    states = layer.joined([state for state, _ in directions], axis=0)
    outputs = layer.joined([output for _, output in directions], axis=1)
    for old, new in zip(node.outputs, (outputs, states), strict=False):
        name = old.name
        new.shape, new.type = old.shape, old.type
        old.name = fresh_name(model, f"{name or node.name}/replaced")
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    model.graph.remove(node, safe=True)


class _Builder:
    """Nodes of one graph, named after the layer."""

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self.model, self.prefix, self.made = model, prefix, list[ir.Node]()

    def node(self, op: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        made = ir.node(op, inputs, attributes=attributes, num_outputs=outputs)
        made.name = fresh_name(self.model, f"{self.prefix}/{op}")
        for number, output in enumerate(made.outputs):
            output.name = fresh_name(self.model, f"{made.name}_{number}")
        self.made.append(made)
        return list(made.outputs)

    def one(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.node(op, inputs, **attributes)[0]

    def stored(self, what: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self.model, f"{self.prefix}/{what}", np.asarray(array, order="C"))

    def product(self, x: ir.Value, integers: ir.Value, scale: ir.Value) -> ir.Value:
        """x times integers times scale, x quantized by its range."""
        levels, step, zero = self.node("DynamicQuantizeLinear", [x], 3)
        sums = self.one("Cast", self.one("MatMulInteger", levels, integers, zero), to=int(ir.DataType.FLOAT))
        return self.one("Mul", sums, self.one("Mul", step, scale))

    def parts(self, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        return self.node("Split", [value, self.stored("sizes", np.array(sizes))], len(sizes), axis=-1)


class _Layer:
    """What the directions of a GRU share."""

    def __init__(
        self, model: ir.Model, node: ir.Node, x: ir.Value | None, lengths: ir.Value | None, initial: ir.Value | None
    ) -> None:
        assert x is not None
        self.model, self.gru, self.x, self.lengths, self.initial = model, node, x, lengths, initial
        self.prefix, self.hidden = str(node.name), int(attribute(node, "hidden_size", 0))
        self.linear = bool(attribute(node, "linear_before_reset", 0))

    def direction(self, i: int, w: Matrix, r: Matrix, bias: NDArray[Any] | None) -> tuple[ir.Value, ir.Value]:
        """The last state (N, hidden) and the outputs (T, N, hidden)."""
        outer, inner = self._biases(bias)
        build = _Builder(self.model, f"{self.prefix}/{i}")
        weights = build.stored("W", w.integers[i]), build.stored("W_scale", w.scale[i])
        p = build.one("Add", build.product(self.x, *weights), build.stored("bias", outer))
        backward = int(i == 1 or attribute(self.gru, "direction", "forward") == "reverse")
        scanned = [p] if self.lengths is None else [p, self._numbers(build)]
        body = self._body(build, r.integers[i], r.scale[i], inner)
        last, outputs = build.node(
            "Scan", [self._first(build, i), *scanned], 2, body=body, num_scan_inputs=len(scanned),
            scan_input_directions=[backward] * len(scanned), scan_output_directions=[backward],
        )  # fmt: skip
        for made in build.made:
            self.gru.prepend(made)
        return last, outputs

    def joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Directions along an axis of their own."""
        build = _Builder(self.model, self.prefix)
        along = build.stored("axis", np.array([axis]))
        found = build.one("Concat", *(build.one("Unsqueeze", value, along) for value in values), axis=axis)
        for made in build.made:
            self.gru.prepend(made)
        return found

    def _biases(self, bias: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the projected input takes along, and what is added to the candidate before its reset."""
        width, hidden = GATES * self.hidden, self.hidden
        both = np.zeros((2, width), np.float32) if bias is None else bias.reshape(2, width)
        if not self.linear:
            return both.sum(axis=0, dtype=np.float32), np.zeros(hidden, np.float32)
        return both[0] + np.pad(both[1, : 2 * hidden], (0, hidden)), both[1, 2 * hidden :]

    def _first(self, build: _Builder, i: int) -> ir.Value:
        if self.initial is not None:
            return build.one("Gather", self.initial, build.stored("number", np.array(i)), axis=0)
        batch = build.one("Gather", build.one("Shape", self.x), build.stored("batch", np.array([1])))
        shape = build.one("Concat", batch, build.stored("hidden", np.array([self.hidden])), axis=0)
        return build.one("Expand", build.stored("zero", np.zeros((1, 1), np.float32)), shape)

    def _numbers(self, build: _Builder) -> ir.Value:
        """0, 1, ... for every step, as lengths are typed."""
        steps = build.one("Gather", build.one("Shape", self.x), build.stored("steps", np.array(0)))
        ends = build.stored("from", np.array(0)), steps, build.stored("by", np.array(1))
        return build.one("Cast", build.one("Range", *ends), to=int(ir.DataType.INT32))

    def _body(self, around: _Builder, r: NDArray[Any], scale: NDArray[Any], inner: NDArray[Any]) -> ir.Graph:
        """One step: (h, p [, t]) to (h, y)."""
        build, hidden = _Builder(self.model, f"{around.prefix}/step"), self.hidden
        real, number = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT32)
        names = [("h", real), ("p", real), *([("t", number)] if self.lengths is not None else [])]
        inputs = [ir.Value(name=fresh_name(self.model, f"{build.prefix}/{n}"), type=kind) for n, kind in names]
        h, p = inputs[:2]
        split = GATES * hidden if self.linear else 2 * hidden
        weights = around.stored("R", r[:, :split]), around.stored("R_scale", scale[:split])
        sums = build.parts(build.product(h, *weights), [hidden] * (split // hidden))
        projected = build.parts(p, [hidden] * GATES)
        z, reset = (build.one("Sigmoid", build.one("Add", projected[g], sums[g])) for g in range(2))
        if self.linear:
            fed = build.one("Mul", reset, build.one("Add", sums[2], around.stored("inner_bias", inner)))
        else:
            weights = around.stored("R_h", r[:, split:]), around.stored("R_h_scale", scale[split:])
            fed = build.product(build.one("Mul", reset, h), *weights)
        n = build.one("Tanh", build.one("Add", projected[2], fed))
        moved = build.one("Add", n, build.one("Mul", z, build.one("Sub", h, n)))  # (1 - z) n + z h
        outputs = [moved, build.one("Identity", moved)]
        if self.lengths is not None:
            column = build.stored("column", np.array([1]))
            live = build.one("Unsqueeze", build.one("Less", inputs[2], self.lengths), column)
            nothing = build.stored("nothing", np.zeros(1, np.float32))
            outputs = [build.one("Where", live, moved, old) for old in (h, nothing)]
        for output in outputs:
            output.type = real
        return ir.Graph(inputs, outputs, nodes=build.made, name=fresh_name(self.model, build.prefix))
