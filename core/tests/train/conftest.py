"""A small classifier, labelled points for it, and a loss: enough to train in milliseconds."""

import attrs
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.strategy import Loss

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
points (float[N, 2] x) => (float[N, 2] y)
<float[2, 8] w1, float[8] b1, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[8, 2] w2, float[2] b2>
{
    h = Gemm(x, w1, b1)
    n = BatchNormalization(h, scale, shift, mean, var)
    r = Relu(n)
    y = Gemm(r, w2, b2)
}"""


def weights(seed):
    draw = np.random.default_rng(seed).standard_normal
    return {
        "w1": draw((2, 8)), "b1": np.zeros(8), "scale": np.ones(8), "shift": np.zeros(8), "mean": np.zeros(8),
        "var": np.ones(8), "w2": draw((8, 2)) / 3, "b2": np.zeros(2),
    }  # fmt: skip


@pytest.fixture
def classifier():
    """A model of opset 21 with random weights."""

    def build(seed=0, kind=np.float32, **changed):
        graph = GRAPH if kind == np.float32 else GRAPH.replace("float[", "float16[")
        proto = onnx.parser.parse_model(graph)
        del proto.graph.value_info[:]
        for name, value in {**weights(seed), **changed}.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(kind), name))
        return ir.from_proto(proto)

    return build


def points(count, seed=0):
    """Two classes: inside and outside a circle."""
    x = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return {"x": x, "labels": (np.square(x).sum(axis=1) > 0.6).astype(np.int64)}


@pytest.fixture
def dataset(classifier):
    return open_dataset(points(320), classifier())


@attrs.frozen(kw_only=True)
class Softmax(Loss):
    """Cross-entropy, as short as it can be."""

    name = "softmax"

    def value_and_grad(self, outputs, batch):
        scores = outputs["y"].astype(np.float32)
        z = scores - scores.max(axis=1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        rows = np.arange(len(p))
        value = float(-np.log(p[rows, batch.labels]).mean())
        p[rows, batch.labels] -= 1
        return value, {"y": p / len(p)}


@pytest.fixture
def loss():
    return Softmax()
