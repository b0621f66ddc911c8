"""`batch`, `inspect`, `evaluate`, `compare` and `demo` on small models."""

import json
import re
import shutil

import numpy as np
import pytest

from pumice.cli.batch import distinct, jobs_from
from pumice.errors import PumiceError
from pumice.testing.models import serialized, tiny_cnn


@pytest.fixture
def folder(tmp_path):
    """Two good models, one damaged, and data."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.onnx").write_bytes(serialized(tiny_cnn(0)))
    (models / "b.onnx").write_bytes(serialized(tiny_cnn(1)))
    (models / "broken.onnx").write_bytes(b"no model")
    x = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(24) % 5)
    return tmp_path


# --- batch ------------------------------------------------------------------------------------------------------------


def test_one_failure_does_not_stop_the_rest(folder, run):
    out = folder / "out"
    done = run("batch", folder / "models", "--data", folder / "data.npz", "-o", out, "--no-measure", "--json")
    assert done.exit_code == 1
    summary = json.loads(done.stdout)
    assert (summary["models"], summary["failed"]) == (3, 1)
    assert [row["ok"] for row in summary["results"]] == [True, True, False]
    assert "not a readable ONNX model" in summary["results"][2]["error"]
    assert sorted(p.name for p in out.iterdir()) == [
        *("a.html", "a.json", "a.onnx", "b.html", "b.json", "b.onnx", "summary.json")
    ]
    assert json.loads((out / "summary.json").read_text()) == summary


def test_a_batch_that_goes_well_has_code_0_and_a_table(folder, run):
    done = run(
        *("batch", folder / "models" / "[ab].onnx", "--data", folder / "data.npz", "-o", folder / "out"),
        *("--no-measure", "--no-report", "--calibrator", "entropy"),
    )
    assert done.exit_code == 0
    assert "2 of 2 models compressed" in done.stdout
    assert "[2/2]" in done.stderr


def test_a_list_gives_each_model_its_own_data_and_output(folder, run):
    fleet = folder / "fleet.toml"
    fleet.write_text(
        '[[model]]\nmodel = "models/a.onnx"\ndata = "data.npz"\noutput = "deep/first.onnx"\n'
        '[[model]]\nmodel = "models/b.onnx"\ndata = "data.npz"\n'
    )
    done = run("batch", fleet, "-o", folder / "out", "--no-measure", "--no-report", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "out" / "deep" / "first.onnx").exists()
    assert (folder / "out" / "b.onnx").exists()


def test_a_csv_list_says_the_same(folder):
    fleet = folder / "fleet.csv"
    fleet.write_text("model,data,output\nmodels/a.onnx,data.npz,\nmodels/b.onnx,,deep/b.onnx\n")
    first, second = jobs_from([str(fleet)], folder / "other", None)
    assert (first.model, first.data) == (folder / "models/a.onnx", folder / "data.npz")
    assert (second.data, str(second.output)) == (folder / "other", "deep/b.onnx")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[[model]]\nmodle = "a.onnx"\n', "did you mean 'model'?"),
        ("[[model]]\nmodel = 3\n", "'model' must be a path in quotes"),
        ('[[model]]\ndata = "d"\n', "does not name a model"),
        ('[[model]]\nmodel = "a.onnx"\noutput = "../../a"\n', "inside the output folder"),
        ("", "names no model"),
        ("[[model\n", "cannot read the list"),
        ('[[models]]\nmodel = "a.onnx"\n', "unknown key 'models'"),
    ],
)
def test_a_wrong_list_is_refused(folder, text, sentence):
    fleet = folder / "fleet.toml"
    fleet.write_text(text)
    with pytest.raises(PumiceError) as refusal:
        jobs_from([str(fleet)], None, None)
    assert sentence in str(refusal.value)


def test_a_pattern_or_folder_that_holds_nothing_is_refused(folder):
    (folder / "empty").mkdir()
    for text in (str(folder / "*.nothing"), str(folder / "empty")):
        with pytest.raises(PumiceError):
            jobs_from([text], None, None)


def test_models_of_one_name_do_not_overwrite_each_other(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        shutil.copy(folder / "models/a.onnx", folder / name / "a.onnx")
    jobs = distinct(jobs_from([str(folder / "one/a.onnx"), str(folder / "two/a.onnx")], None, None))
    assert [str(job.output) for job in jobs] == ["a.onnx", "two/a.onnx"]
    with pytest.raises(PumiceError, match="two models would be written"):
        distinct(jobs_from([str(folder / name / "a.onnx") for name in ("one", "two", "two")], None, None))


@pytest.mark.parametrize("wanted", [20, 700])
def test_as_many_samples_calibrate_as_are_asked_for(folder, run, wanted):
    x = np.random.default_rng(0).standard_normal((1500, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "many.npz", x=x, labels=np.arange(1500) % 5)
    done = run(
        *("compress", folder / "models/a.onnx", "--data", folder / "many.npz", "--samples", wanted),
        *("-o", folder / "out.onnx", "--no-measure"),
    )
    said = int(re.search(r"(\d+) samples of '.*', evenly spread, calibrated", done.stdout)[1])
    assert wanted - 0.1 * wanted <= said <= wanted


def test_no_model_is_written_over_another_ones_report_or_the_summary(folder):
    for name in ("a.onnx", "a.ort", "summary.onnx"):
        shutil.copy(folder / "models/a.onnx", folder / name)
    jobs = jobs_from([str(folder / name) for name in ("a.onnx", "a.ort", "summary.onnx")], None, None)
    own = folder.name
    assert [str(job.output) for job in distinct(jobs)] == ["a.onnx", f"{own}/a.ort", f"{own}/summary.onnx"]
    assert [str(job.output) for job in distinct(jobs, with_reports=False)] == ["a.onnx", "a.ort", "summary.onnx"]


def test_a_list_may_begin_with_a_byte_order_mark(folder, run):
    fleet = folder / "fleet.csv"
    fleet.write_text("model,data\nmodels/a.onnx,data.npz\n", encoding="utf-8-sig")
    assert run("batch", fleet, "-o", folder / "out", "--no-measure", "--no-report", "--quiet").exit_code == 0


def test_names_in_brackets_are_shown_as_they_are(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "models/a.onnx").rename("x[red]y.onnx")
    done = run("batch", "x[red]y.onnx", "--data", "data.npz", "-o", "out", "--no-measure", "--no-report")
    assert "x[red]y.onnx" in done.stdout


# --- inspect, evaluate, compare ---------------------------------------------------------------------------------------


def test_inspect_tells_what_is_in_a_model(folder, run):
    done = run("inspect", folder / "models/a.onnx")
    assert done.exit_code == 0
    for words in (
        "ort; plan; reference",
        "2 Conv",
        "opset 21",
        "dynamic axes x:0",
        "What would be worth compressing",
        "INT8 quantization",
    ):
        assert words in done.stdout


def test_inspect_says_why_a_runtime_does_not_take_a_model(folder, run, install, plugin):
    import attrs

    from pumice.errors import ModelError
    from pumice.strategy import Runtime

    @attrs.frozen(kw_only=True)
    class Picky(Runtime):
        name = "picky"

        def open(self, model, *, outputs=None, threads=None):
            raise ModelError("picky takes no Conv")

    install(picky=plugin(pumice_runtimes=[Picky]))
    found = json.loads(run("inspect", folder / "models/a.onnx", "--json").stdout)
    runtimes = {"picky": "picky takes no Conv", "reference": "yes", "simulated": "yes"}
    assert found["runtimes"].items() >= runtimes.items()
    assert "no kernels are installed" in found["runtimes"]["plan"]


def test_inspect_with_data_profiles_the_nodes(folder, run):
    found = json.loads(run("inspect", folder / "models/a.onnx", "--data", folder / "data.npz", "--json").stdout)
    assert found["assumed"] == ""
    assert sum(time["seconds"] for time in found["times"]) > 0
    assert found["file_bytes"] == (folder / "models/a.onnx").stat().st_size


def test_evaluate_gives_an_interval(folder, run):
    done = run("evaluate", folder / "models/a.onnx", "--data", folder / "data.npz", "--samples", "20", "--json")
    (score,) = [s for s in json.loads(done.stdout)["scores"] if s["metric"] == "top1"]
    assert score["low"] <= score["mean"] <= score["high"]
    assert score["samples"] == 20


def test_compare_measures_and_shows_layers(folder, run):
    data = folder / "data.npz"
    small = folder / "small.onnx"
    assert run("compress", folder / "models/a.onnx", "--data", data, "-o", small, "--no-measure").exit_code == 0
    done = run("compare", folder / "models/a.onnx", small, "--data", data, "--layers", "--json")
    found = json.loads(done.stdout)
    assert found["compression"] > 1
    assert {layer["op"] for layer in found["layers"]} == {"Conv", "Gemm"}
    assert found["before"]["latency"]["median_ms"] > 0


# --- demo -------------------------------------------------------------------------------------------------------------


def test_the_demo_writes_a_model_and_a_page_and_says_where(folder, run):
    example = folder / "example"
    (example / "data").mkdir(parents=True)
    shutil.copy(folder / "models/a.onnx", example / "tiny.onnx")
    for part in ("calibration", "test"):
        shutil.copy(folder / "data.npz", example / "data" / f"{part}.npz")
    out = folder / "out"
    done = run("demo", example, "-o", out)
    assert done.exit_code == 0, done.stderr
    for name in ("tiny.int8.onnx", "tiny.html", "tiny.json"):
        assert f"wrote {out / name} (" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["tiny.html", "tiny.int8.onnx", "tiny.json"]


def test_the_demo_says_what_is_missing(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("demo")
    assert done.exit_code == 2
    assert "there is no 'examples/fashion_resnet' here or above" in done.stderr
    (tmp_path / "bare").mkdir()
    assert "must hold one .onnx file, not 0" in run("demo", tmp_path / "bare").stderr
