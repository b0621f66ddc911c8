"""Every installed loss teaches, alone and together, pictures and text, before and after other steps."""

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import pumice
from pumice.cli.application import application
from pumice.distil.architectures import built
from pumice.distil.loss import DistillationLoss, SampledLoss
from pumice.errors import ModelError
from pumice.registry import registry
from pumice.steps import Distil
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn

LOSSES = {name: kind for name, kind in registry().strategies("loss").items() if issubclass(kind, DistillationLoss)}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "distillation.md"
PICTURES = sorted(
    n for n, k in LOSSES.items() if k.compares in {"outputs", "features"} and not issubclass(k, SampledLoss)
)
TEXTS = sorted(set(LOSSES) - {"pkt", "relational-distance", "relational-angle"})


def pictures(count, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return {"x": x, "labels": (x.mean(axis=(1, 2, 3)) > 0).astype(np.int64)}


@pytest.fixture(scope="module")
def gpt():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    words (int64[N, T] ids) => (float[N, T, 11] logits) <float[11, 11] table = {%s}> { logits = Gather(table, ids) }"""
    like = ir.from_proto(onnx.parser.parse_model(text % ", ".join(["0"] * 121)))
    return built({"family": "gpt", "width": 8, "heads": 2, "layers": 2}, like)


def curve(result):
    (found,) = [e.details["losses"] for e in result.ledger.of("distil") if "losses" in e.details]
    return found


def step(*losses, **knobs):
    return {"use": "distil", "losses": list(losses), "epochs": 4, "batch": 16, "lr": 0.01, "alpha": 1.0, **knobs}


def run(model, data, *steps):
    return pumice.compress(model, data, {"step": list(steps)}, runtime="reference", measure=False)


@pytest.mark.parametrize("name", PICTURES)
def test_a_loss_teaches_pictures(name):
    found = curve(run(tiny_cnn(), {"x": pictures(64)["x"]}, step(name, width=0.5)))
    assert found[-1] < found[0]


@pytest.mark.parametrize("name", TEXTS)
def test_a_loss_teaches_text(gpt, name):
    tokens = np.random.default_rng(0).integers(0, 11, (64, 20))
    found = curve(run(gpt, {"ids": tokens}, step(name, width=0.5)))
    assert np.isfinite(found).all()
    if not issubclass(LOSSES[name], SampledLoss):
        assert found[-1] < found[0]


@pytest.fixture(scope="module")
def bert():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    words (int64[N, T] ids, int64[N, T] present) => (float[N, T, 11] scores) <float[11, 11] table = {%s}> {
        found = Gather(table, ids)
        shares = Cast<to = 1>(present)
        axis = Constant<value_ints = [-1]>()
        weights = Unsqueeze(shares, axis)
        scores = Mul(found, weights)
    }"""
    like = ir.from_proto(onnx.parser.parse_model(text % ", ".join(["0"] * 121)))
    return built({"family": "bert", "width": 8, "heads": 2, "layers": 2}, like)


@pytest.mark.parametrize("name", ["attention-maps", "value-relation"])
def test_what_stands_in_the_padding_teaches_nothing(bert, name):
    tokens, present = np.random.default_rng(0).integers(0, 11, (32, 6)), np.ones((32, 6), np.int64)
    present[:, 4:] = 0
    curves = [
        curve(run(bert, {"ids": ids, "present": present}, step({"name": name, "mask": "present"}, layers=0.5)))
        for ids in (tokens, np.where(present, tokens, 7))
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_a_mask_that_is_no_input_is_refused(bert):
    data = {name: np.ones((8, 4), np.int64) for name in ("ids", "present")}
    with pytest.raises(ModelError, match="no such input; did you mean 'present'"):
        run(bert, data, step({"name": "attention-maps", "mask": "presents"}, layers=0.5))


def test_several_losses_teach_together():
    losses = ["soft-targets", {"name": "feature-mse", "weight": 0.5, "until": 0.5}, "attention-transfer"]
    result = run(tiny_cnn(), pictures(64), step(*losses, width=0.5, alpha=0.7))
    assert "soft-targets, feature-mse, attention-transfer" in " ".join(result.notes)


def test_pruned_distilled_and_quantized_it_is_still_right():
    data = pictures(640)
    steps = [
        {"use": "train", "epochs": 4, "batch": 32, "lr": 0.01},
        {"use": "prune", "ratio": 0.5},
        step("soft-targets", epochs=4),
        {"use": "quantize", "max_drop": 0.1, "quantizer": {"name": "int8", "smallest": 1}},
    ]
    result = run(tiny_cnn(), data, *steps)
    assert result.measurements.compression > 1.5
    assert result.ledger.of("distil", "applied")
    assert result.ledger.of("quantize", "applied")


def test_quantization_aware_training_follows_the_model_in_floating_point():
    quantizer = {"name": "qat", "smallest": 1, "loss": "soft-targets", "epochs": 2, "batch": 32}
    result = run(tiny_cnn(), {"x": pictures(320)["x"]}, {"use": "quantize", "quantizer": quantizer, "max_drop": 1.0})
    assert result.ledger.of("quantize", "applied")
    assert result.measurements.agreement.mean > 0.8


def test_quantization_aware_training_looks_at_outputs_only():
    quantizer = {"name": "qat", "smallest": 1, "loss": "feature-mse"}
    with pytest.raises(pumice.PumiceError, match="'feature-mse' looks inside the networks"):
        run(tiny_cnn(), {"x": pictures(320)["x"]}, {"use": "quantize", "quantizer": quantizer})


def test_the_labels_of_a_loss_are_found_by_themselves():
    result = run(tiny_cnn(), pictures(64), step("soft-targets", width=0.5, alpha=0.5))
    assert any("of its teacher's" in note for note in result.notes)


def command(*arguments):
    return CliRunner().invoke(application, ["distil", *map(str, arguments)])


def test_the_command_writes_a_student_and_its_account(tmp_path):
    pumice.save(tiny_cnn(), tmp_path / "teacher.onnx")
    np.savez(tmp_path / "samples.npz", x=pictures(64)["x"])
    knobs = ["--width", "0.5", "--epochs", "3", "--losses", "soft-targets:temperature=2"]
    knobs += ["--losses", "feature-mse:weight=0.5,until=0.5", "--report", tmp_path / "report.html"]
    paths = ["--data", tmp_path / "samples.npz", "-o", tmp_path / "student.onnx"]
    done = command(tmp_path / "teacher.onnx", *paths, *knobs)
    assert done.exit_code == 0, done.output
    assert "learned from it by soft-targets, feature-mse" in done.output
    assert (tmp_path / "student.onnx").stat().st_size < (tmp_path / "teacher.onnx").stat().st_size
    assert "loss, step by step" in (tmp_path / "report.html").read_text()


def test_the_command_has_a_flag_for_every_knob_but_the_teacher():
    shown = command("--help").output
    flags = {f"--{name.replace('_', '-')}" for name in Distil.knobs()} - {"--teacher"}
    assert [flag for flag in flags if flag not in shown] == []
    assert "--teacher " not in shown


def test_the_step_of_the_page_reads():
    text = PAGE.read_text()
    recipe = text.split("```toml\n")[1].split("```")[0]
    names = [each.name for each in pumice.Recipe.from_toml(recipe).steps]
    assert names == ["prune", "distil", "quantize"]


def test_every_loss_is_named_in_the_page():
    text = PAGE.read_text()
    assert [name for name in LOSSES if f"`{name}`" not in text] == []


def test_a_name_that_is_no_loss_is_refused():
    with pytest.raises(pumice.PumiceError, match="soft-targets"):
        registry().make(Loss, "soft-target")
