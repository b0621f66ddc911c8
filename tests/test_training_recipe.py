"""Training, losses and quantizers together: a network learns from scratch, is folded, quantized and exported."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import pumice
from pumice.quantize.simulation import simulate
from pumice.registry import registry
from pumice.strategy import Runtime

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
bars (float[N, 1, 8, 8] x) => (float[N, 2] y) {
    c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w)
    n = BatchNormalization(c, scale, bias, mean, var)
    r = Relu(n)
    d = Conv<kernel_shape=[3, 3], strides=[2, 2]>(r, v)
    p = GlobalAveragePool(d)
    f = Flatten(p)
    y = Gemm(f, u, b)
}"""


def network():
    draw = np.random.default_rng(0).standard_normal
    weights = {
        "w": draw((8, 1, 3, 3)) / 2, "scale": np.ones(8), "bias": np.zeros(8), "mean": np.zeros(8), "var": np.ones(8),
        "v": draw((8, 8, 3, 3)) / 8, "u": draw((8, 2)) / 2, "b": np.zeros(2),
    }  # fmt: skip
    proto = onnx.parser.parse_model(GRAPH)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return ir.from_proto(proto)


def bars(count, seed):
    """Upright or lying bars in noise."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, count)
    x = draws.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    for picture, label, at in zip(x, labels, draws.integers(1, 7, count), strict=True):
        picture[0, :, at] += label
        picture[0, at, :] += 1 - label
    return {"x": x, "labels": labels}


def recipe(quantizer):
    training = {"use": "train", "epochs": 6, "batch": 32, "lr": 0.02, "loss": {"name": "cross-entropy"}}
    return {"step": [training, {"use": "quantize", "quantizer": quantizer, "max_drop": 1.0}]}


@pytest.fixture(scope="module")
def int8():
    return pumice.compress(network(), bars(640, 0), recipe("int8"), test=bars(300, 1), measure=False)


def top1(result):
    return result.measurements.after.evaluation.scores["top1"].mean


def test_a_network_from_scratch_learns_and_is_quantized(int8):
    assert top1(int8) > 0.9
    assert int8.ledger.of("quantize", "applied")


def test_normalisation_is_folded_between_training_and_quantization(int8):
    assert "BatchNormalization" not in {node.op_type for node in int8.model.graph}


def test_the_report_draws_the_training(int8, tmp_path):
    page = int8.report(tmp_path / "report.html").read_text()
    assert '<section id="training">' in page
    assert "loss, step by step" in page


@pytest.mark.parametrize("bits", [8, 4])
def test_quantization_aware_training_exports_what_onnxruntime_computes_bit_for_bit(tmp_path, bits):
    quantizer = {"name": "qat", "weight_bits": bits, "smallest": 1, "epochs": 4, "batch": 32, "lr": 2e-3}
    result = pumice.compress(network(), bars(640, 0), recipe(quantizer), test=bars(300, 1), measure=False)
    assert top1(result) > 0.9
    (path, *_) = result.save(tmp_path / "trained.onnx")
    session = registry().make(Runtime, "ort").open(path)
    x = bars(64, 2)["x"]
    (exact,), (got,) = simulate(result.model).run({"x": x}).values(), session.run({"x": x}).values()
    np.testing.assert_array_equal(got, exact)
