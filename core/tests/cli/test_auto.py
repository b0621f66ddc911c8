"""`pumice auto`: from a model to the winner, its recipe and its account, or to the reason why there is none."""

import json
import shlex

import numpy as np
import pytest

from pumice.testing.models import serialized, tiny_cnn

SHORT = ("--budget", "0", "--trials", "1", "--searcher", "random")


@pytest.fixture
def asked(tmp_path):
    """A command without limits; the samples are labelled anyhow."""
    (tmp_path / "model.onnx").write_bytes(serialized(tiny_cnn()))
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(80) % 5)
    return ("auto", tmp_path / "model.onnx", "--data", tmp_path / "data.npz", "-o", tmp_path / "small.onnx", *SHORT)


def test_it_writes_the_winner_its_recipe_and_its_report(asked, tmp_path, run):
    recipe, report = tmp_path / "small.toml", tmp_path / "small.html"
    done = run(*asked, "--max-drop", "100%", "--seed", "7", "--write-recipe", recipe, "--report", report, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["search"]["winner"]["trial"]["number"] == 1
    told, _ = recipe.read_text().removeprefix("# pumice ").split("\n", 1)
    assert "--seed 7" in told
    again = run(*shlex.split(told)[:-1], tmp_path / "again.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()
    assert "<svg" in report.read_text()


def test_where_no_recipe_keeps_the_limits_it_names_the_nearest_and_writes_nothing(asked, tmp_path, run):
    done = run(*asked, "--max-drop", "100%", "--size", "1000x")
    assert done.exit_code == 1
    assert "o recipe meets the limits; the nearest, trial 1, is" in " ".join(done.stdout.split())
    assert not (tmp_path / "small.onnx").exists()


def test_the_report_tells_of_the_trials_where_there_is_no_winner_too(asked, tmp_path, run):
    report = tmp_path / "none.html"
    done = run(*asked, "--max-drop", "100%", "--size", "1000x", "--report", report)
    assert done.exit_code == 1
    assert f"wrote {report} (" in done.stdout
    assert "1000x is asked" in report.read_text()
    assert "<svg" in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["search"]["winner"] is None
