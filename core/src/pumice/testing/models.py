"""Small models with real structure, built in memory: what the contracts run strategies on."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import parser

from pumice.model import infer_shapes

Feeds = dict[str, NDArray[np.generic]]

_HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
_CNN = """
cnn (float[N,3,8,8] x) => (float[N,5] logits) {
    c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r1, w2, b2)
    sum = Add (r1, c2)
    r2 = Relu (sum)
    pooled = GlobalAveragePool (r2)
    flat = Flatten (pooled)
    logits = Gemm <transB=1> (flat, w3, b3)
}"""
_CNN_WEIGHTS = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (5, 16), "b3": (5,)}
_WEIGHTLESS = "weightless (float[N,4] x) => (float[N,4] y) { h = Relu (x)  y = Abs (h) }"


def tiny_cnn(seed: int = 0) -> ir.Model:
    """Conv, Relu, Conv, residual Add, Relu, pooling, Gemm: input `x` (N, 3, 8, 8), output `logits` (N, 5)."""
    rng = np.random.default_rng(seed)
    return _build(_CNN, {name: _he(rng, shape) for name, shape in _CNN_WEIGHTS.items()})


def weightless() -> ir.Model:
    """Two activations and no weight: nothing to compress. Input `x` (N, 4), output `y` (N, 4)."""
    return _build(_WEIGHTLESS, {})


def random_feeds(count: int, seed: int = 0, size: int = 4) -> list[Feeds]:
    """`count` batches of `size` standard normal samples for `tiny_cnn`."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((size, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def serialized(model: ir.Model) -> bytes:
    """The bytes of a model, the same for the same model."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights scaled as He et al. (2015) do, so that activations keep their size from layer to layer."""
    scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def _build(text: str, weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    proto = parser.parse_model(_HEADER + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    return infer_shapes(ir.from_proto(proto))
