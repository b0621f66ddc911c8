"""A small classifier, a second one that differs from it, and data for both."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from pumice.model import save

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def linear(weight: np.ndarray) -> ir.Model:
    """logits = x @ weight."""
    rows, columns = weight.shape
    text = f"linear (float[N,{rows}] x) => (float[N,{columns}] logits) {{ logits = MatMul(x, w) }}"
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return ir.from_proto(proto)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 4))


@pytest.fixture
def model(weight) -> ir.Model:
    return linear(weight)


@pytest.fixture
def noisy(weight) -> ir.Model:
    return linear(weight + 0.3 * np.random.default_rng(1).standard_normal(weight.shape))


@pytest.fixture
def data(weight):
    """200 samples, labelled as `model` sees them, but for 20."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    labels = (x @ weight).argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % 4
    return x, labels


@pytest.fixture
def files(model, noisy, tmp_path):
    paths = tmp_path / "before.onnx", tmp_path / "after.onnx"
    for found, path in zip((model, noisy), paths, strict=True):
        save(found, path)
    return paths
