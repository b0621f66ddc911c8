"""Errors go where the outputs of the network do not see them; where that cannot be known, the account says so."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.model import infer_shapes
from pumice.plan import compile_plan

HEADER = '<ir_version: 10, opset_import: ["" : 26]> g (float[N,24] x) => '
HEARD = "(float[N,9] y) { h = MatMul(x, w) t = Tanh(h) y = MatMul(t, v) }"


@pytest.fixture
def samples():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((16, 24)).astype(np.float32)} for _ in range(8)]


def network(text):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEADER + text)
    heard = np.where(np.arange(32) < 4, 1.0, 1e-3)  # the rest of the hidden units hardly matter, and is louder
    arrays = {
        "w": rng.standard_normal((24, 32)) / (1.0 + 9.0 * heard),
        "v": heard[:, None] * rng.standard_normal((32, 9)),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    if "axis" in text:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    for node in proto.graph.node:
        node.name = node.output[0]
    return infer_shapes(ir.from_proto(proto))


def compress(model, data, **knobs):
    step = {"use": "quantize", "quantizer": {"name": "kmeans", **knobs}, "max_drop": 1.0}
    return pumice.compress(model, data, {"step": [step]}, measure=False)


def test_gradients_spend_the_table_on_the_outputs_that_are_heard(samples):
    model = network(HEARD)

    def noise(weighting):
        changed = compress(model, samples, weighting=weighting, codebook="tensor", smallest=300).model
        pairs = [(compile_plan(changed).run(f)["y"], compile_plan(model).run(f)["y"]) for f in samples]
        return np.mean([np.mean((found - exact) ** 2) for found, exact in pairs])

    assert noise("fisher") < 0.7 * noise("activation")


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("(float[N,9] y) { h = MatMul(x, w) t = CumProd(h, axis) y = MatMul(t, v) }", "CumProd"),
        ("(int64[N,1] y) { h = MatMul(x, w) t = Tanh(h) z = MatMul(t, v) y = ArgMax <axis=1> (z) }", "varies smoothly"),
    ],
)
def test_without_gradients_the_outputs_of_the_layers_count_and_the_account_says_so(samples, text, because):
    result = compress(network(text), samples)
    assert any("the outputs of their layers" in note and because in note for note in result.notes)
    assert any("the outputs of their layers" in entry.reason for entry in result.ledger if entry.node == "model")
