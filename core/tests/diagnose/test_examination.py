"""The whole diagnosis: what is predicted is what is measured."""

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.diagnose import CoverageCurve, diagnose, remedies, tried
from pumice.diagnose.coverage import calibration_coverage
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.registry import registry
from pumice.report.diagnosis import render
from pumice.strategy import Quantizer
from pumice.testing.models import tiny_cnn


@pytest.fixture(scope="module")
def parts():
    model = tiny_cnn()
    x = np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32)
    data = open_dataset({"x": x}, model)
    quantizer = registry().make(Quantizer, {"name": "int8", "smallest": 1, "activations": "static"})
    context = QuantizeContext(calibration=data, runtime=ReferenceRuntime(), target=Target.named("ort-cpu"))
    return model, quantizer.quantize(model, context), data


@pytest.fixture(scope="module")
def diagnosis(parts):
    return diagnose(*parts, ReferenceRuntime())


def test_every_layer_is_told_with_its_errors(diagnosis):
    assert len(diagnosis.layers) == 3
    for layer in diagnosis.layers:
        assert layer.alone_sqnr_db > 20
        assert 0.99 < layer.output_cosine <= 1.0
        assert layer.saturated is None or 0.0 <= layer.saturated < 0.01


def test_the_worst_layer_is_suggested_for_floating_point_and_helps_when_tried(parts, diagnosis):
    model, _, data = parts
    first, *_ = [remedy for remedy in diagnosis.remedies if len(remedy.step.get("exclude", ())) == 1]
    assert 1 / 3 <= first.expected <= 1.0
    trials = tried(model, [first], data, ReferenceRuntime(), "int8")
    assert trials[0].noise < diagnosis.noise


def test_expected_gains_are_sorted(diagnosis):
    gains = [remedy.expected or 0.0 for remedy in remedies(diagnosis.layers)]
    assert gains == sorted(gains, reverse=True)


def test_what_saturates_without_vnni_is_predicted_by_simulation(diagnosis):
    assert diagnosis.without_vnni is not None
    assert diagnosis.without_vnni.noise >= 0.0
    assert any("without VNNI" in sentence for sentence in diagnosis.sentences())


def test_ranges_that_stop_growing_say_how_many_samples_are_enough():
    model = tiny_cnn()
    rows = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    rows[0] *= 10.0  # all there is to see is in the first
    curve = calibration_coverage(model, ["c1"], open_dataset({"x": rows}, model), ReferenceRuntime(), limit=64)
    assert curve.enough == 1
    assert list(curve.mean) == sorted(curve.mean)


def test_ranges_that_grow_to_the_end_ask_for_more_samples():
    curve = CoverageCurve(samples=(1, 2, 4), mean=(0.5, 0.8, 1.0), least=(0.5, 0.8, 1.0))
    assert curve.enough is None
    assert "calibrate with more" in curve.sentence()


def test_the_page_holds_every_layer_and_loads_nothing(diagnosis):
    page = render(diagnosis, "<model>", [layer.node for layer in diagnosis.layers])
    assert "&lt;model&gt;" in page
    assert all(layer.node in page for layer in diagnosis.layers)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
