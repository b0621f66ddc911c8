"""Transformers of any size, described without memory: GPT's shape (every token sees those before it, scores of the
next one) and BERT's (every token sees all, a class from their mean).

A matrix is one number, its standard deviation, repeated without being stored. `DrawnOnDevice` draws it where it is
wanted: on the GPU, from a seed, in the type of the model. Matrices that end a residual branch are drawn smaller by the
root of twice the layers, as GPT-2's are.
"""

import math

import attrs
import numpy as np
import onnx_ir as ir

OPSET, IR_VERSION = 21, 10
NEVER = -1e4
"""Added to the scores of tokens that may not be seen; narrow floats hold it."""


@attrs.frozen(kw_only=True)
class Shape:
    """A transformer."""

    width: int
    layers: int
    heads: int
    length: int
    """Tokens of a sample."""
    words: int = 256
    causal: bool = True
    """GPT; else BERT."""
    classes: int = 2
    dtype: str = "float16"

    def model(self) -> ir.Model:
        return _Builder(self).build()


class _Builder:
    def __init__(self, shape: Shape) -> None:
        self.shape, self.dtype = shape, np.dtype(shape.dtype)
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}

    def build(self) -> ir.Model:
        shape = self.shape
        x = ir.Value(name="x", shape=ir.Shape(["N", shape.length]), type=ir.TensorType(ir.DataType.INT64))
        y = self.node("Gather", [self.matrix("words", shape.words, shape.width, 0.02), x], "words")
        y = self.node("Add", [y, self.matrix("positions", shape.length, shape.width, 0.02)], "positioned")
        for number in range(shape.layers):
            y = self.layer(y, f"layer{number}")
        y = self.norm(y, "last_norm")
        if shape.causal:
            y = self.node("MatMul", [y, self.matrix("head.w", shape.width, shape.words, 0.02)], "scores")
        else:
            mean = self.node("ReduceMean", [y, self.constant("token_axis", np.array([1]))], "mean", keepdims=0)
            y = self.dense(mean, "head", shape.width, shape.classes)
        y.name, y.type = "y", ir.TensorType(ir.DataType.from_numpy(self.dtype))
        y.shape = ir.Shape(["N", shape.length, shape.words] if shape.causal else ["N", shape.classes])
        graph = ir.Graph(
            [x], [y], nodes=self.nodes, initializers=list(self.weights.values()),
            opset_imports={"": OPSET}, name="gpt" if shape.causal else "bert",
        )  # fmt: skip
        return ir.Model(graph, ir_version=IR_VERSION)

    def layer(self, x: ir.Value, name: str) -> ir.Value:
        """Attention and a feed-forward part, each normalised before it and added to what came in."""
        width = self.shape.width
        x = self.node("Add", [x, self.attention(self.norm(x, f"{name}.norm1"), name)], f"{name}.add1")
        y = self.dense(self.norm(x, f"{name}.norm2"), f"{name}.up", width, 4 * width)
        y = self.node("Gelu", [y], f"{name}.gelu")
        return self.node("Add", [x, self.dense(y, f"{name}.down", 4 * width, width, last=True)], f"{name}.add2")

    def attention(self, y: ir.Value, name: str) -> ir.Value:
        width, size = self.shape.width, self.shape.width // self.shape.heads
        root = self.constant("root", np.array(1 / math.sqrt(size), self.dtype))
        q = self.node("Mul", [self.dense(y, f"{name}.q", width, width), root], f"{name}.scaled")
        q = self.heads(q, f"{name}.q", [0, 2, 1, 3])
        k = self.heads(self.dense(y, f"{name}.k", width, width), f"{name}.k", [0, 2, 3, 1])
        v = self.heads(self.dense(y, f"{name}.v", width, width), f"{name}.v", [0, 2, 1, 3])
        scores = self.node("MatMul", [q, k], f"{name}.scores")
        if self.shape.causal:
            later = np.triu(np.full((self.shape.length,) * 2, NEVER, self.dtype), 1)
            scores = self.node("Add", [scores, self.constant("later", later)], f"{name}.masked")
        shares = self.node("Softmax", [scores], f"{name}.shares", axis=-1)
        read = self.node("Transpose", [self.node("MatMul", [shares, v], f"{name}.read")], f"{name}.turned",
                         perm=[0, 2, 1, 3])  # fmt: skip
        merged = self.node("Reshape", [read, self.constant("merge", np.array([0, 0, width]))], f"{name}.merged")
        return self.dense(merged, f"{name}.out", width, width, last=True)

    def heads(self, x: ir.Value, name: str, order: list[int]) -> ir.Value:
        sizes = [0, 0, self.shape.heads, self.shape.width // self.shape.heads]
        y = self.node("Reshape", [x, self.constant("split", np.array(sizes))], f"{name}_split")
        return self.node("Transpose", [y], f"{name}_heads", perm=order)

    def dense(self, x: ir.Value, name: str, inputs: int, outputs: int, *, last: bool = False) -> ir.Value:
        spread = 0.02 / math.sqrt(2 * self.shape.layers) if last else 0.02
        y = self.node("MatMul", [x, self.matrix(f"{name}.w", inputs, outputs, spread)], f"{name}.product")
        return self.node("Add", [y, self.constant(f"{name}.b", np.zeros(outputs, self.dtype))], f"{name}.sum")

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        ones, zeros = np.ones(self.shape.width, self.dtype), np.zeros(self.shape.width, self.dtype)
        parts = [self.constant(f"{name}.scale", ones), self.constant(f"{name}.bias", zeros)]
        return self.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=1e-5)

    def matrix(self, name: str, rows: int, columns: int, spread: float) -> ir.Value:
        return self.constant(name, np.broadcast_to(np.asarray(spread, self.dtype), (rows, columns)))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.weights:
            tensor = ir.tensor(array, name=name)
            self.weights[name] = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.weights[name]

    def node(self, op: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=name, outputs=[ir.Value(name=f"{name}_out")])
        self.nodes.append(node)
        return node.outputs[0]


def drawn(model: ir.Model, seed: int = 0) -> ir.Model:
    """The same model with its matrices drawn, in the memory of this machine."""
    draws = np.random.default_rng(seed)
    for name, value in model.graph.initializers.items():
        held = value.const_value.numpy()
        if is_described(held):
            values = draws.standard_normal(held.shape, np.float32) * np.float32(held.flat[0])
            value.const_value = ir.tensor(values.astype(held.dtype), name=name)
    return model


def is_described(array: np.ndarray) -> bool:
    """Whether it stands for a matrix to be drawn: one number, repeated."""
    return array.ndim == 2 and array.size > 1 and not any(array.strides)
