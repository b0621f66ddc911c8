import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.data import open_dataset
from pumice.errors import BudgetExceeded, ModelError, NothingChanged
from pumice.measure import pick_runtime
from pumice.measure.metrics import Top1
from pumice.model import infer_shapes
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
        ({"activations": "auto"}, {"static"}),
        ({"activations": "dynamic"}, {"dynamic", "weight-only"}),
        ({"activations": "weights"}, {"weight-only"}),
    ],
)
def test_the_knob_says_where_ranges_come_from(network, images, knobs, modes):
    around = context(network, {"image": images})
    Int8(**knobs).quantize(network, around)
    assert {entry.details["mode"] for entry in around.ledger if "mode" in entry.details} == modes


MIXED = """g (float[T,1,8] x) => (float[1,6] y) {
    a, ah = GRU <hidden_size=12> (x, wg, rg)  s = Squeeze (a, one)  b, bh = LSTM <hidden_size=16> (s, wl, rl)
    h = Squeeze (bh, zero)  y = MatMul (h, v) }"""


@pytest.fixture(scope="module")
def recurrent():
    """A GRU, an LSTM and a projection."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {MIXED}')
    draws = np.random.default_rng(0)
    shapes = {"wg": (1, 36, 8), "rg": (1, 36, 12), "wl": (1, 64, 12), "rl": (1, 64, 16), "v": (16, 6)}
    arrays = {name: (draws.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"zero": np.array([0]), "one": np.array([1])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


LSTM_WEIGHTS = {"w": (1, 64, 8), "r": (1, 64, 16)}


def spoken(count=8):
    draws = np.random.default_rng(1)
    return [{"x": draws.standard_normal((20, 1, 8)).astype(np.float32)} for _ in range(count)]


def test_the_defaults_compute_an_lstm_with_integers_and_say_why_a_gru_is_left(recurrent):
    result = pumice.compress(recurrent, spoken(), measure=False)
    assert pick_runtime("ort").optimized_ops(result.model)["DynamicQuantizeLSTM"] == 1
    lines = {entry.node: entry for entry in result.ledger.of("quantize")}
    assert lines["at_b"].details == {"mode": "dynamic", "bits": 8}
    assert lines["at_a"].verdict == "declined"
    assert "no integer operator for GRU" in lines["at_a"].reason
    exact, found = (pick_runtime().open(m).run(spoken(1)[0])["y"] for m in (recurrent, result.model))
    assert np.mean((exact - found) ** 2) < 1e-3 * np.var(exact)


@pytest.mark.parametrize(
    ("knobs", "modes"),
    [
        ({"recurrent": "none"}, (None, None)),
        ({"recurrent": "all"}, ("weight-only", "dynamic")),
        ({"recurrent": "all", "activations": "static"}, ("weight-only", "weight-only")),
        ({"activations": "static"}, (None, None)),
    ],
)
def test_the_knobs_say_what_becomes_of_recurrent_layers(recurrent, knobs, modes):
    around = context(recurrent, spoken())
    Int8(**knobs).quantize(recurrent, around)
    found = {entry.node: entry.details.get("mode") for entry in around.ledger.of("quantize")}
    assert (found["at_a"], found["at_b"]) == modes


def test_an_lstm_that_costs_too_much_is_given_back():
    """What it hears after a bang is so quiet that a range for both leaves nothing of it."""
    text = "g (float[T,1,8] x) => (float[T,1,1,16] y) { y, h = LSTM <hidden_size=16> (x, w, r) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    draws = np.random.default_rng(0)
    arrays = {name: draws.standard_normal(shape).astype(np.float32) for name, shape in LSTM_WEIGHTS.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    proto.graph.node[0].name = "lstm"
    bang = np.where(np.arange(20) == 0, 1e4, 1.0).astype(np.float32)[:, None, None]
    with pytest.raises(BudgetExceeded, match="rolled back"):
        pumice.compress(ir.from_proto(proto), [{"x": feed["x"] * bang} for feed in spoken()], measure=False)


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
