"""Per-layer error: the right layers are paired, and the decibels are those of the definition."""

import attrs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from pumice.data import open_dataset
from pumice.diagnose import LayerError, layer_errors, recommendations
from pumice.diagnose.decibels import EXACT, sqnr, sqnr_of
from pumice.diagnose.pairing import pairs
from pumice.diagnose.rescaling import GainFit, undo_in_weights
from pumice.errors import PumiceError
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.model import constant, simplify
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.registry import registry
from pumice.strategy import Quantizer
from pumice.testing.models import tiny_cnn

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def model_of(text, **weights):
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    model = ir.from_proto(proto)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


@pytest.fixture(scope="module")
def cnn():
    return tiny_cnn()


@pytest.fixture(scope="module")
def samples(cnn):
    x = np.random.default_rng(1).standard_normal((12, 3, 8, 8)).astype(np.float32)
    return open_dataset({"x": x}, cnn)


RUNTIME = ReferenceRuntime()


def quantized(model, data, **knobs):
    model = model.clone()
    simplify(model)
    quantizer = registry().make(Quantizer, {"name": "int8", "smallest": 1, **knobs})
    context = QuantizeContext(calibration=data, runtime=ReferenceRuntime(), target=Target.named("ort-cpu"))
    return quantizer.quantize(model, context)


@pytest.fixture(scope="module")
def static(cnn, samples):
    return quantized(cnn, samples, activations="static")


@pytest.fixture(scope="module")
def errors(cnn, static, samples):
    return layer_errors(cnn, static, samples, ReferenceRuntime())


def test_every_quantized_layer_is_found_worst_first(cnn, errors):
    weighted = {node.name for node in cnn.graph if node.op_type in {"Conv", "Gemm"}}
    assert {error.node for error in errors} == weighted
    decibels = [error.output_sqnr_db for error in errors]
    assert decibels == sorted(decibels)


def test_eight_bits_have_the_precision_of_eight_bits(errors):
    for error in errors:
        assert 30 < error.weight_sqnr_db < 60
        assert 20 < error.output_sqnr_db < 60
        assert error.weight_bytes_before > 3 * (error.weight_bytes_after - 100)


def test_ranges_coverage_and_outliers_are_shares_of_the_output(errors):
    for error in errors:
        assert 0.0 <= error.outliers_3sigma < 0.1
        assert error.coverage is None or 0.97 < error.coverage <= 1.0
        assert error.output_range[0] < error.output_range[1]
    assert any(error.coverage is not None for error in errors)


def test_histograms_count_the_same_values_in_both_models(errors):
    for error in errors:
        assert error.histogram.of == ("weights" if error.coverage is None else "output")
        assert sum(error.histogram.before) == sum(error.histogram.after) > 0
        assert len(error.histogram.edges) == len(error.histogram.before) + 1


def test_histograms_show_the_grid_that_compressed_numbers_lie_on(cnn, samples, errors):
    on_outputs = [error.histogram for error in errors if error.coverage is not None]
    assert all(0 < len(found.grid) <= 256 for found in on_outputs)
    compressed = quantized(cnn, samples, equalize=False)
    found = {error.node: np.array(error.histogram.grid) for error in layer_errors(cnn, compressed, None, RUNTIME)}
    for pair in pairs(cnn, compressed):
        widened = pair.after.inputs[1].producer()
        if widened is None:
            continue
        scales, grid = constant(widened.inputs[1]).reshape(-1, 1), found[pair.after.name]
        levels = grid / scales
        assert 1 < len(grid) <= 256
        assert np.abs(levels - np.rint(levels)).max(axis=1).min() < 1e-2  # of the channel that is shown


@pytest.mark.parametrize("activations", ["dynamic", "weights"])
def test_other_forms_of_integer_weights_are_found_too(cnn, samples, activations):
    found = layer_errors(cnn, quantized(cnn, samples, activations=activations), samples, ReferenceRuntime())
    gemm = next(error for error in found if error.op == "Gemm")
    assert gemm.weight_sqnr_db > 35
    assert gemm.output_sqnr_db > 20


def test_an_embedding_of_integer_rows_is_found():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 16)).astype(np.float32)
    text = "g (int64[N,4] ids) => (float[N,4,16] y) { e = Gather (table, ids) y = Relu (e) }"
    original = model_of(text, table=table)
    data = open_dataset({"ids": rng.integers(0, 50, (6, 4))}, original)
    compressed = quantized(original, data)
    (error,) = layer_errors(original, compressed, data, ReferenceRuntime())
    assert error.op == "Gather"
    assert error.weight_sqnr_db > 35


def test_without_data_the_weights_alone_are_compared(cnn, static):
    found = layer_errors(cnn, static, None, ReferenceRuntime())
    assert all(error.output_sqnr_db is None and error.coverage is None for error in found)
    assert [error.weight_sqnr_db for error in found] == sorted(error.weight_sqnr_db for error in found)
    assert all(error.histogram.of == "weights" for error in found)


def test_a_model_that_was_not_changed_has_no_layer_errors(cnn, samples):
    assert layer_errors(cnn, cnn.clone(), samples, ReferenceRuntime()) == []


def test_weights_edited_in_place_count_as_compressed(cnn, samples):
    changed = cnn.clone()
    value = changed.graph.initializers["w1"]
    rounded = np.round(constant(value) * 4).astype(np.float32) / 4
    value.const_value = ir.tensor(rounded, name="w1")
    (error,) = layer_errors(cnn, changed, samples, ReferenceRuntime())
    assert error.weight_sqnr_db == sqnr_of(constant(cnn.graph.initializers["w1"]), rounded)
    assert error.weight_bytes_before == error.weight_bytes_after


def test_the_models_are_left_as_they_were(cnn, static, samples):
    from pumice.model import fingerprint

    before = fingerprint(cnn), fingerprint(static)
    layer_errors(cnn, static, samples, ReferenceRuntime())
    assert (fingerprint(cnn), fingerprint(static)) == before


def test_tapping_in_groups_changes_nothing(cnn, static, samples, errors, monkeypatch):
    monkeypatch.setattr("pumice.diagnose.layers.TAP_BYTES", 1)
    assert layer_errors(cnn, static, samples, ReferenceRuntime()) == errors


def test_an_activation_that_vanished_into_a_range_is_followed(cnn, static):
    reference = cnn.clone()
    simplify(reference)
    first = next(pair for pair in pairs(reference, static) if pair.before.op_type == "Conv")
    assert first.output_before.producer().op_type == "Relu"
    assert first.output_after.producer().op_type == "DequantizeLinear"


# --- rescaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape", "axes"),
    [
        ("g (float[N,6,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w) }", (4, 6, 3, 3), (0, 1)),
        ("g (float[N,6] x) => (float[N,4] y) { y = Gemm <transB=1> (x, w) }", (4, 6), (0, 1)),
        ("g (float[N,6] x) => (float[N,4] y) { y = Gemm (x, w) }", (6, 4), (1, 0)),
        ("g (float[N,6] x) => (float[N,4] y) { y = MatMul (x, w) }", (6, 4), (1, 0)),
    ],
)
def test_channel_factors_are_undone_and_the_real_error_stays(text, shape, axes):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    node = next(iter(model_of(text, w=weights).graph))
    noisy = weights + 0.01 * rng.standard_normal(shape)
    scaled = noisy.copy()
    for axis in axes:
        factors = np.exp(rng.standard_normal(shape[axis]))
        scaled = scaled * factors.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    undone = undo_in_weights(node, weights, scaled)
    assert abs(sqnr_of(weights, undone) - sqnr_of(weights, noisy)) < 3.0
    assert sqnr_of(weights, scaled) < 10


def test_noise_is_not_mistaken_for_rescaling():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    node = next(iter(model_of("g (float[N,8,8,8] x) => (float[N,16,6,6] y) { y = Conv (x, w) }", w=weights).graph))
    assert undo_in_weights(node, weights, weights + 0.1 * rng.standard_normal(weights.shape)) is None


def test_gains_of_outputs_are_fitted_over_all_samples():
    rng = np.random.default_rng(0)
    gain, fit = np.array([0.5, 2.0, 8.0]), GainFit("Conv")
    for _ in range(3):
        exact = rng.standard_normal((1, 3, 5, 5))
        fit.update(exact, exact / gain[:, None, None])
    np.testing.assert_allclose(fit.gain().factor, gain)
    np.testing.assert_allclose(fit.gain().offset, 0.0, atol=1e-6)


def test_outputs_with_plain_noise_get_no_gain():
    rng = np.random.default_rng(0)
    fit = GainFit("Gemm")
    for _ in range(8):
        exact = rng.standard_normal((1, 10))
        fit.update(exact, exact + 0.1 * rng.standard_normal((1, 10)))
    assert fit.gain() is None


# --- decibels and advice ----------------------------------------------------------------------------------------------


def test_decibels_follow_the_definition():
    assert sqnr(100.0, 1.0) == 20.0
    assert sqnr(1.0, 0.0) == EXACT
    assert sqnr(0.0, 1.0) is None
    assert sqnr(float("nan"), 1.0) is None


GOOD = LayerError(
    node="a",
    op="Conv",
    weight_bytes_before=4,
    weight_bytes_after=1,
    weight_sqnr_db=40.0,
    output_sqnr_db=35.0,
    output_range=(0.0, 1.0),
    outliers_3sigma=0.001,
    coverage=1.0,
    rescaled=False,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_sqnr_db": 12.0}, "--exclude 'a'"),
        ({"output_sqnr_db": 9.0}, "the error comes from activations"),
        ({"coverage": 0.9}, "down to 90.0% inside"),
        ({"outliers_3sigma": 0.05, "output_sqnr_db": 22.0}, "a calibrator that clips"),
    ],
)
def test_each_weakness_has_its_advice(change, words):
    assert recommendations([GOOD]) == []
    (sentence,) = recommendations([GOOD, attrs.evolve(GOOD, **change)])
    assert words in sentence


def test_errors_can_be_written_as_json(errors):
    import json

    assert json.loads(json.dumps([attrs.asdict(error) for error in errors], allow_nan=False))


def test_a_runtime_that_refuses_is_not_hidden(cnn, static, samples):
    @attrs.frozen(kw_only=True)
    class Refusing(ReferenceRuntime):
        def open(self, *_, **__):
            raise PumiceError("no")

    with pytest.raises(PumiceError):
        layer_errors(cnn, static, samples, Refusing())


def test_alone_a_first_layer_errs_as_it_does_in_the_whole_and_later_ones_err_less(errors, static):
    order = {node.name: number for number, node in enumerate(static.graph)}
    first, *later = sorted(errors, key=lambda error: order[error.node])
    assert first.alone_sqnr_db == pytest.approx(first.output_sqnr_db, abs=0.5)
    assert all(error.alone_sqnr_db > error.output_sqnr_db for error in later)


def test_alone_an_error_does_not_pass_from_layer_to_layer():
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, v) }"
    eye = np.eye(8, dtype=np.float32)
    turned = np.roll(eye, 1, axis=1)
    exact = model_of(text, w=eye, v=eye)
    changed = model_of(text, w=eye + turned / 4, v=eye + turned / 8)
    data = open_dataset({"x": np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)}, exact)
    found = {e.node: e for e in layer_errors(exact, changed, data, ReferenceRuntime())}
    assert found["MatMul_0"].alone_sqnr_db == pytest.approx(20 * np.log10(4), abs=0.01)
    assert found["MatMul_2"].alone_sqnr_db == pytest.approx(20 * np.log10(8), abs=0.01)
    assert found["MatMul_2"].output_sqnr_db < 20 * np.log10(4)


def test_the_channels_with_outliers_are_named():
    text = "g (float[N,8] x) => (float[N,8] y) { y = MatMul (x, w) }"
    loud = np.diag([1, 1, 1, 400, 1, 1, 1, 1]).astype(np.float32)
    rows = {"x": np.random.default_rng(0).standard_normal((2, 200, 8)).astype(np.float32)}
    exact = model_of(text.replace("N,8", "N,200,8"), w=loud)
    changed = model_of(text.replace("N,8", "N,200,8"), w=loud + np.float32(0.1))
    (found,) = layer_errors(exact, changed, open_dataset(rows, exact), ReferenceRuntime())
    assert found.outlier_channels == ((3, 1.0),)
    assert 0.99 < found.output_cosine < 1.0
    assert found.output_mse == pytest.approx(0.08, rel=0.5)
