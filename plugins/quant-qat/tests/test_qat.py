"""The contract, and what training with rounding promises: the file computes what was trained."""

import attrs
import numpy as np
import pytest

from pumice import compress
from pumice.data import open_dataset
from pumice.model import constant, size
from pumice.plan import compile_plan
from pumice.quantize.engine import Scheme, quantize_layers
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
