"""The example that is committed is what its README says, and the main job works on it from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

import pumice
from pumice.data import open_splits
from pumice.plan import compile_plan
from pumice.recipe import Recipe

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_resnet"


@pytest.fixture(scope="module")
def model():
    return pumice.load(EXAMPLE / "fashion_resnet.onnx")


def test_the_data_is_labelled_and_fits_the_model(model):
    splits = open_splits(EXAMPLE / "data", model)
    assert (splits.calibration.count(), splits.test.count()) == (512, 2500)
    assert splits.test.labelled


def test_the_network_is_as_good_as_it_was_trained(model):
    plan, right = compile_plan(model), []
    for batch in open_splits(EXAMPLE / "data", model).test.batches(100, limit=1000):
        (scores,) = plan.run(batch.feeds).values()
        right.extend(scores.argmax(axis=1) == batch.labels)
    assert np.mean(right) > 0.92


def test_the_recipe_is_what_runs_without_one():
    (written,), (default,) = Recipe.read(EXAMPLE / "recipe.toml").steps, Recipe.default().steps
    assert written.quantizer.settings() == type(written.quantizer)().settings()
    assert {**written.settings(), "quantizer": None} == {**default.settings(), "quantizer": None}


def test_the_main_job_makes_it_smaller_keeps_its_accuracy_and_accounts_for_it(tmp_path):
    result = pumice.compress(EXAMPLE / "fashion_resnet.onnx", EXAMPLE / "data", measure=False)
    (small, *_) = result.save(tmp_path / "small.onnx")
    page = result.report(tmp_path / "report.html")

    assert small.stat().st_size < 0.35 * (EXAMPLE / "fashion_resnet.onnx").stat().st_size
    assert result.ledger.counts()["applied"] > 0
    assert page.stat().st_size > 1000
    json.dumps(result.to_json())
