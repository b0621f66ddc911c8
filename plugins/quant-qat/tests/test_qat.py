"""The contract, and what training with rounding promises: the file computes what was trained."""

import attrs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from pumice import compress
from pumice.data import open_dataset
from pumice.model import constant, size
from pumice.plan import compile_plan
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.quantize.simulation import compare_integers, simulate
from pumice.registry import registry
from pumice.strategy import Runtime
from pumice.testing import QuantizerContract
from pumice_quant_qat import Qat
from pumice_quant_qat.student import Student

SETTINGS = {"epochs": 1, "lr": 1e-5, "batch": 4, "smallest": 1}


def labelled(feeds):
    rows = {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
    return {**rows, "labels": np.arange(len(next(iter(rows.values())))) % 2}


class TestQat(QuantizerContract):
    strategy = Qat
    settings = SETTINGS

    def context(self, model, **settings):
        found = super().context(model, **settings)
        return attrs.evolve(found, training=open_dataset(labelled(self.samples()), model))


class TestFourBits(TestQat):
    settings = {**SETTINGS, "weight_bits": 4}
    sqnr_db = 8.0


class TestFixedScales(TestQat):
    settings = {**SETTINGS, "scales": "fixed"}


@pytest.fixture
def parts():
    case = TestQat()
    model = case.model()
    context = case.context(model)
    scheme = Scheme(modes=("static",), equalize=False, compensate=False, correct_bias=False, smallest=1)
    return model, quantize_layers(model, scheme, context), case.samples()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_computes_what_the_training_graph_computes(parts, bits):
    model, quantized, samples = parts
    student = Student.of(quantized, model, bits)
    draws = np.random.default_rng(0)
    values = {
        weight.real: (held := constant(student.model.graph.initializers[weight.real]))
        + draws.normal(0, 0.01, held.shape).astype(np.float32)
        for weight in student.weights
    }
    values |= {
        name: (held := constant(student.model.graph.initializers[name])) + np.float32(draws.normal(0, 0.05, held.shape))
        for name in student.logarithms.values()
    }
    trained, finished = compile_plan(student.model), compile_plan(student.finished(values, samples[0]))
    for feeds in samples:
        exact, got = trained.run({**feeds, **values}), finished.run(feeds)
        for name, array in exact.items():
            np.testing.assert_array_equal(got[name], array)


def test_weights_of_four_bits_are_stored_in_fewer_bytes():
    case8, case4 = TestQat(), TestFourBits()
    assert size(case4.quantized()).total < size(case8.quantized()).total


def test_without_labels_there_is_nothing_to_train_on(parts):
    model, _, samples = parts
    recipe = {"step": [{"use": "quantize", "quantizer": {"name": "qat", "smallest": 1}}]}
    with pytest.raises(Exception, match="needs labelled data"):
        compress(model, samples, recipe, measure=False)


@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_computes_what_the_simulation_computes_bit_for_bit(bits):
    case = TestFourBits() if bits == 4 else TestQat()
    quantized, runtime = case.quantized(), registry().make(Runtime, "ort")
    differences = compare_integers(quantized, case.samples(), runtime)
    assert differences
    assert not any(found.steps for found in differences)
    session, simulated = runtime.open(quantized), simulate(quantized)
    for feeds in case.samples():
        exact = simulated.run(feeds)
        for name, array in session.run(feeds).items():
            np.testing.assert_array_equal(array, exact[name])


def activation_scales(model):
    return {
        str(node.inputs[1].name): float(constant(node.inputs[1]))
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }


def test_fixed_scales_are_measured_once_more_after_the_warm_up_and_then_freeze():
    case = TestFixedScales()
    model = case.model()

    def scales(**knobs):
        return activation_scales(Qat(**SETTINGS | {"scales": "fixed", "lr": 0.05} | knobs).quantize(model, context))

    context = case.context(model)
    calibrated = activation_scales(Qat(smallest=1).quantize(model, case.context(model, draft=True)))
    assert scales(epochs=2, warmup=0) == calibrated
    context = case.context(model)
    measured = scales(epochs=2, warmup=1)
    assert measured != calibrated
    context = case.context(model)
    assert scales(epochs=3, warmup=1) == measured


def test_a_normalisation_is_folded_before_the_rounding_is_trained():
    graph = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,2,6,6] x) => (float[N,3] y) {
            c = Conv<kernel_shape = [3, 3]>(x, w) n = BatchNormalization(c, s, b, m, v) r = Relu(n)
            g = GlobalAveragePool(r) y = Flatten(g)
        }""")
    draws = np.random.default_rng(0)
    held = {"w": draws.normal(size=(3, 2, 3, 3)), "s": [1, 2, 3], "b": [0, 1, 0], "m": [0, 0, 1], "v": [1, 4, 1]}
    graph.graph.initializer.extend(numpy_helper.from_array(np.array(a, np.float32), name) for name, a in held.items())
    data = {"x": draws.normal(size=(16, 2, 6, 6)).astype(np.float32), "labels": draws.integers(0, 3, 16)}
    step = {"use": "quantize", "quantizer": {"name": "qat", **SETTINGS}, "max_drop": 1.0}
    found = compress(ir.from_proto(graph), data, {"step": [step]}, measure=False).model
    assert "BatchNormalization" not in {node.op_type for node in found.graph}
    assert "QuantizeLinear" in {node.op_type for node in found.graph}


def test_training_begins_with_what_post_training_quantization_gives(parts):
    model, quantized, samples = parts
    begun, before = (compile_plan(each) for each in (Student.of(quantized, model, 8).model, quantized))
    for feeds in samples:
        for name, array in before.run(feeds).items():
            noise = np.square(begun.run(feeds)[name] - array).mean()
            assert noise < 1e-3 * np.square(array).mean()
