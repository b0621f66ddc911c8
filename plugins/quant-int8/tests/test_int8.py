import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.data import open_dataset
from pumice.errors import ModelError, NothingChanged
from pumice.measure import pick_runtime
from pumice.measure.metrics import Top1
from pumice.quantize.context import QuantizeContext
from pumice.quantize.guard import judge, within_budget
from pumice.quantize.target import Target, names
from pumice.testing.models import weightless
from pumice_quant_int8 import Int8


def context(model, data, target="ort-cpu", **settings):
    return QuantizeContext(
        calibration=open_dataset(data, model), runtime=pick_runtime(), target=Target.named(target), **settings
    )


def first(model, images):
    (output,) = pick_runtime().open(model).run({"image": images}).values()
    return output


def compress(model, data, **step):
    return pumice.compress(model, data, {"step": [{"use": "quantize", **step}]}, measure=False)


@pytest.mark.parametrize("target", names())
def test_every_target_is_served_from_the_recipe(network, images, target):
    result = compress(network, {"image": images}, target=target)
    exact, found = first(network, images), first(result.model, images)
    assert np.mean(exact.argmax(axis=1) == found.argmax(axis=1)) > 0.9
    assert {entry.node for entry in result.ledger.of("quantize")} >= {node.name for node in network.graph}


def test_onnx_runtime_computes_everything_between_with_integers(network, images):
    result = compress(network, {"image": images}, quantizer={"name": "int8", "activations": "static"})
    found = pick_runtime("ort").optimized_ops(result.model)
    assert {kind: found[kind] for kind in ("QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm")} == {
        "QLinearConv": 4,
        "QLinearAdd": 1,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
    }
    assert {"Conv", "Gemm", "Relu", "Add", "MaxPool"}.isdisjoint(found)


@pytest.mark.parametrize("calibrator", ["minmax", "moving-average", "percentile", "entropy", "mse"])
def test_every_calibrator_serves(network, images, calibrator):
    quantizer = {"name": "int8", "calibrator": calibrator, "activations": "static"}
    result = compress(network, {"image": images}, quantizer=quantizer)
    exact, found = first(network, images), first(result.model, images)
    assert np.sum((exact - found) ** 2) < 0.05 * np.sum((exact - exact.mean()) ** 2)


@pytest.mark.parametrize(
    ("knobs", "modes"),
    [
        ({"activations": "static"}, {"static"}),
        ({"activations": "auto"}, {"static", "dynamic"}),
        ({"activations": "dynamic"}, {"dynamic", "weight-only"}),
        ({"activations": "weights"}, {"weight-only"}),
    ],
)
def test_the_knob_says_where_ranges_come_from(network, images, knobs, modes):
    around = context(network, {"image": images})
    Int8(**knobs).quantize(network, around)
    assert {entry.details["mode"] for entry in around.ledger if "mode" in entry.details} == modes


def test_a_model_that_loses_accuracy_gets_its_worst_layer_back(images):
    text = """g (float[N,8] image) => (float[N,8] y) {
        a = MatMul (image, w)  b = Mul (a, gains)  y = MatMul (b, v) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    weights = {"w": np.eye(8), "v": np.eye(8), "gains": np.array([0.0, *[1.0] * 7])}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    model = ir.from_proto(proto)
    rows = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    rows[:, 0] *= 1e4  # one input so large that eight bits leave nothing for the others, and then it is not used
    around = context(model, (rows, first(model, rows).argmax(axis=1)), metrics=(Top1(),))
    result = within_budget(model, Int8(activations="static", equalize=False), around)
    assert [entry.node for entry in around.ledger.of("quantize", "declined")] == ["at_a"]
    assert "returned to floating point: top1 lost" in around.ledger.of("quantize", "declined")[0].reason
    assert not judge(model, result, attrs.evolve(around)).exceeded


def test_a_model_without_layers_changes_nothing_and_says_why():
    with pytest.raises(NothingChanged, match="no integer layer asks for its values"):
        compress(weightless(), np.ones((8, 4), np.float32))


def test_a_quantized_model_is_not_quantized_again(network, images):
    result = compress(network, {"image": images})
    with pytest.raises(ModelError, match="already quantized"):
        compress(result.model, {"image": images})


def test_an_opset_without_scales_per_channel_is_refused(network):
    network.opset_imports[""] = 11
    assert "its opset is 11" in Int8().accepts(network)
