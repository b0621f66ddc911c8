"""Families for sequences: token numbers (N, T), with a mask of the same shape as a second input where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import onnx_ir as ir

from pumice.distil.architectures.network import Network

NEVER = -1e9
"""Added to the score of a key that may not be looked at."""


@attrs.frozen(kw_only=True)
class _Transformer:
    """Layers of attention and a feed-forward part, each normalised before it and added to what came in."""

    inputs = "tokens"
    causal = False
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 0
    """Words; 0 takes those of the teacher."""
    positions: int = 512
    """Longest sequence."""

    def body(self, net: Network, x: ir.Value) -> tuple[ir.Value, int]:
        table = net.drawn("words", (self.vocabulary, self.width), 1, 0.02)
        y = net.node("Gather", [table, x], "embedding")
        length = net.node("Slice", [net.node("Shape", [x], "shape"), *_range(net, 1, 2)], "length")
        place = net.drawn("places", (self.positions, self.width), 1, 0.02)
        zero = net.integers("zero", 0)
        y = net.node("Add", [y, net.node("Slice", [place, zero, length], "places_here")], "placed")
        mask = self._mask(net, length)
        for number in range(self.layers):
            y = self._layer(net, y, f"layer{number}", mask)
        return net.layer_norm(y, "last_norm", self.width), self.width

    def _mask(self, net: Network, length: ir.Value) -> ir.Value | None:
        """What is added to the scores (N, heads, queries, keys)."""
        if self.causal:
            future = np.triu(np.full((self.positions, self.positions), NEVER), 1)
            start, both = net.integers("corner", 0, 0), net.node("Concat", [length, length], "both", axis=0)
            return net.node("Slice", [net.constant("future", future), start, both], "future_here")
        if len(net.inputs) < 2:
            return None
        absent = net.node(
            "Sub", [net.constant("one", 1.0), net.node("Cast", [net.inputs[1]], "present", to=1)], "absent"
        )
        absent = net.node("Unsqueeze", [absent, net.integers("heads_and_queries", 1, 2)], "absent_keys")
        return net.node("Mul", [absent, net.constant("never", NEVER)], "mask")

    def _layer(self, net: Network, x: ir.Value, name: str, mask: ir.Value | None) -> ir.Value:
        width, y = self.width, net.layer_norm(x, f"{name}.norm1", self.width)
        q, k, v = (self._heads(net, net.dense(y, f"{name}.{part}", width, width), f"{name}.{part}") for part in "qkv")
        k = net.node("Transpose", [k], f"{name}.k_last", perm=[0, 1, 3, 2])
        root = net.constant("root", np.sqrt(width // self.heads))
        scores = net.node("Div", [net.node("MatMul", [q, k], f"{name}.scores"), root], f"{name}.scaled")
        if mask is not None:
            scores = net.node("Add", [scores, mask], f"{name}.masked")
        shares = net.node("Softmax", [scores], f"{name}.shares", axis=-1)
        y = net.node(
            "Transpose", [net.node("MatMul", [shares, v], f"{name}.read")], f"{name}.joined", perm=[0, 2, 1, 3]
        )
        y = net.node("Reshape", [y, net.integers("flat_heads", 0, 0, width)], f"{name}.flat")
        x = net.node("Add", [x, net.dense(y, f"{name}.out", width, width)], f"{name}.add1")
        y = net.dense(net.layer_norm(x, f"{name}.norm2", width), f"{name}.up", width, 4 * width)
        y = net.dense(_gelu(net, y, f"{name}.gelu"), f"{name}.down", 4 * width, width)
        return net.node("Add", [x, y], f"{name}.add2")

    def _heads(self, net: Network, x: ir.Value, name: str) -> ir.Value:
        shape = net.integers("apart", 0, 0, self.heads, self.width // self.heads)
        return net.node(
            "Transpose", [net.node("Reshape", [x, shape], f"{name}_apart")], f"{name}_heads", perm=[0, 2, 1, 3]
        )


@attrs.frozen(kw_only=True)
class Bert(_Transformer):
    """An encoder: every token sees every other (Devlin et al., NAACL 2019), normalised before each part."""


@attrs.frozen(kw_only=True)
class Gpt(_Transformer):
    """A decoder: every token sees those before it (Radford et al., 2018), normalised before each part."""

    causal = True


@attrs.frozen(kw_only=True)
class Lstm:
    """Layers of long short-term memory; forget gates begin open."""

    inputs = "tokens"
    width: int = 128
    """Of the state."""
    layers: int = 2
    embedding: int = 64
    vocabulary: int = 0
    """Words; 0 takes those of the teacher."""

    def body(self, net: Network, x: ir.Value) -> tuple[ir.Value, int]:
        y = net.node("Gather", [net.drawn("words", (self.vocabulary, self.embedding), 1), x], "embedding")
        y = net.node("Transpose", [y], "steps_first", perm=[1, 0, 2])
        inputs, hidden = self.embedding, self.width
        for number in range(self.layers):
            bias = np.zeros((1, 8 * hidden))
            bias[:, 2 * hidden : 3 * hidden] = 1.0  # gates are input, output, forget, cell
            name = f"layer{number}"
            parts = [
                net.drawn(f"{name}.w", (1, 4 * hidden, inputs), inputs),
                net.drawn(f"{name}.r", (1, 4 * hidden, hidden), hidden),
                net.constant(f"{name}.b", bias),
            ]
            states = net.node("LSTM", [y, *parts], name, hidden_size=hidden)
            y = net.node("Squeeze", [states, net.integers("direction", 1)], f"{name}.states")
            inputs = hidden
        return net.node("Transpose", [y], "samples_first", perm=[1, 0, 2]), hidden


def answered(net: Network, x: ir.Value, width: int, outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """For each output (N, T, C) a projection of every token, for (N, C) one of their mean."""
    found = []
    for number, like in enumerate(outputs):
        y = _mean(net, x) if len(like.shape or ()) == 2 else x
        found.append(net.dense(y, f"head{number}", width, int(like.shape[-1])))  # type: ignore[index, arg-type]
    return found


def _mean(net: Network, x: ir.Value) -> ir.Value:
    """Over the tokens that the mask says are there."""
    axis = net.integers("tokens", 1)
    if len(net.inputs) < 2:
        return net.node("ReduceMean", [x, axis], "mean", keepdims=0)
    present = net.node(
        "Unsqueeze", [net.node("Cast", [net.inputs[1]], "there", to=1), net.integers("last", -1)], "weights"
    )
    total = net.node("ReduceSum", [net.node("Mul", [x, present], "there_only"), axis], "sum", keepdims=0)
    return net.node("Div", [total, net.node("ReduceSum", [present, axis], "count", keepdims=0)], "mean")


def _gelu(net: Network, x: ir.Value, name: str) -> ir.Value:
    y = net.node("Erf", [net.node("Div", [x, net.constant("root2", np.sqrt(2))], f"{name}.div")], f"{name}.erf")
    y = net.node("Mul", [x, net.node("Add", [y, net.constant("one", 1.0)], f"{name}.add")], f"{name}.mul")
    return net.node("Mul", [y, net.constant("half", 0.5)], f"{name}.half")


def _range(net: Network, start: int, end: int) -> list[ir.Value]:
    return [net.integers(f"at{start}", start), net.integers(f"at{end}", end)]
