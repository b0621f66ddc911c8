"""A graph under construction: layers by name, weights drawn as they are asked for.

Kernels and matrices are normal with standard deviation sqrt(gain / inputs): gain 2 in front of a ReLU (He et al., ICCV
2015), 1 elsewhere. Biases are zero, scales one; the last scale of a residual branch is zero, so that a deep network
begins as a shallow one. Everything comes from one seed, in the order in which it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from pumice.model import add_initializer

OPSET, IR_VERSION = 21, 10


class Network:
    """An append-only graph; every node's value is named after the node."""

    def __init__(self, name: str, inputs: Sequence[ir.Value], seed: int | None) -> None:
        """Without a seed the weights are zero and take no memory: an outline to plan with."""
        self.inputs = [ir.Value(name=str(v.name), shape=v.shape, type=v.type) for v in inputs]
        graph = ir.Graph(self.inputs, [], nodes=[], opset_imports={"": OPSET}, name=name)
        self.model = ir.Model(graph, ir_version=IR_VERSION, producer_name="pumice")
        self._draws = None if seed is None else np.random.default_rng(seed)
        self._held: dict[str, ir.Value] = {}

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer; the one there is if the name is known."""
        if name not in self._held:
            self._held[name] = add_initializer(self.model, name, np.array(values, dtype))
        return self._held[name]

    def integers(self, name: str, *values: int) -> ir.Value:
        return self.constant(name, values, np.int64)

    def drawn(self, name: str, shape: Sequence[int], inputs: int, gain: float = 1.0) -> ir.Value:
        if self._draws is None:
            self._held[name] = add_initializer(self.model, name, np.broadcast_to(np.float32(0), shape))
            return self._held[name]
        return self.constant(name, self._draws.standard_normal(shape) * np.sqrt(gain / inputs))

    def node(self, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """Append a node of one output."""
        return self.nodes(op, inputs, name, 1, attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, outputs: int, attributes: Mapping[str, Any]
    ) -> Sequence[ir.Value]:
        node = ir.node(op, inputs, attributes=attributes, num_outputs=outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}.{number}" if number else f"{name}.out"
        self.model.graph.append(node)
        return node.outputs

    # --- layers -------------------------------------------------------------------------------------------------------

    def conv(
        self, x: ir.Value, name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> ir.Value:
        fan = inputs // groups * kernel**2
        w = self.drawn(f"{name}.w", (outputs, inputs // groups, kernel, kernel), fan, 2.0)
        sizes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": groups}
        return self.node("Conv", [x, w], name, **sizes)

    def norm(self, x: ir.Value, name: str, channels: int, scale: float = 1.0) -> ir.Value:
        values = {"scale": scale, "bias": 0.0, "mean": 0.0, "var": 1.0}
        parts = [self.constant(f"{name}.{part}", np.full(channels, v)) for part, v in values.items()]
        return self.node("BatchNormalization", [x, *parts], name, epsilon=1e-5, momentum=0.9)

    def conv_norm(
        self, x: ir.Value, name: str, inputs: int, outputs: int, act: str = "Relu", scale: float = 1.0, **sizes: int
    ) -> ir.Value:
        y = self.norm(self.conv(x, f"{name}.conv", inputs, outputs, **sizes), f"{name}.norm", outputs, scale)
        return self.node(act, [y], f"{name}.act") if act else y

    def dense(self, x: ir.Value, name: str, inputs: int, outputs: int, gain: float = 1.0) -> ir.Value:
        y = self.node("MatMul", [x, self.drawn(f"{name}.w", (inputs, outputs), inputs, gain)], f"{name}.product")
        return self.node("Add", [y, self.constant(f"{name}.b", np.zeros(outputs))], name)

    def layer_norm(self, x: ir.Value, name: str, width: int) -> ir.Value:
        parts = [self.constant(f"{name}.scale", np.ones(width)), self.constant(f"{name}.bias", np.zeros(width))]
        return self.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=1e-5)

    def finished(self, results: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        """The model whose outputs are these, called and shaped as those of another."""
        for value, like in zip(results, outputs, strict=True):
            value.name, value.shape, value.type = like.name, like.shape, like.type
            self.model.graph.outputs.append(value)
        return self.model
