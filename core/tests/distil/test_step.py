"""The `distil` step in a recipe: a student comes near its teacher, whatever came before, with labels or without."""

from types import SimpleNamespace

import attrs
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import pumice
from pumice import compress
from pumice.data import open_dataset
from pumice.distil.application import Lesson
from pumice.distil.comparison import Gain
from pumice.distil.connectors import Connection
from pumice.distil.objective import Distillation, Term
from pumice.errors import DataError, KnobError, ModelError
from pumice.ledger import Ledger
from pumice.measure import pick_runtime
from pumice.pipeline import RunContext
from pumice.progress import Silent
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.steps import Distil, Prune
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn
from pumice.train.optimizers import LossScale

from .conftest import Features, Square, Weighted, pictures

UNLABELLED = {"x": pictures(96)["x"]}


def run(model, data, *steps, **options):
    return compress(model, data, Recipe(steps), runtime="reference", measure=False, **options)


def distil(**knobs):
    return Distil(**{"losses": (Square(),), "epochs": 4, "batch": 16, "lr": 0.01, **knobs})


def distance(model, teacher):
    """Mean squared difference of the scores on other pictures."""
    x = {"x": pictures(64, seed=1)["x"]}
    runtime = pick_runtime("reference")
    ours, theirs = (runtime.open(each).run(x)["logits"] for each in (model, teacher))
    return float(np.square(ours - theirs).mean())


def context(model, dataset, seed=0):
    return RunContext(
        calibration=dataset, test=dataset, training=dataset, metrics=(), runtime=pick_runtime("reference"),
        ledger=Ledger(), seed=seed, threads=1, progress=Silent(), original=model,
    )  # fmt: skip


def test_a_narrower_student_learns_without_labels():
    teacher = tiny_cnn()
    bare = run(teacher, UNLABELLED, Prune(ratio=0.5)).model
    taught = run(teacher, UNLABELLED, distil(width=0.5)).model
    assert distance(taught, teacher) < 0.5 * distance(bare, teacher)


def test_mixtures_of_pictures_without_labels_are_taught():
    teacher = tiny_cnn()
    bare = run(teacher, UNLABELLED, Prune(ratio=0.5)).model
    taught = run(teacher, UNLABELLED, Prune(ratio=0.5), distil(augment=("mixup",))).model
    assert distance(taught, teacher) < 0.5 * distance(bare, teacher)


def test_what_was_pruned_before_learns_from_the_model_that_was_given():
    teacher = tiny_cnn()
    result = run(teacher, UNLABELLED, Prune(ratio=0.5), distil())
    assert distance(result.model, teacher) < 0.5 * distance(run(teacher, UNLABELLED, Prune(ratio=0.5)).model, teacher)
    assert result.ledger.of("distil", "applied")


def test_the_account_says_who_learned_what_from_whom():
    result = run(tiny_cnn(), UNLABELLED, distil(width=0.5))
    (curve,) = [e for e in result.ledger.of("distil") if "losses" in e.details]
    assert curve.details["losses"][0] > curve.details["losses"][-1]
    assert any("of its teacher's" in note and "learned from it by square" in note for note in result.notes)
    (compared,) = [e.details["compared"] for e in result.ledger.of("distil") if "compared" in e.details]
    assert compared == ["logits = logits"]


@pytest.mark.parametrize("connector", ["learned", "kept"])
def test_features_of_other_widths_are_learned_and_the_connector_is_left_behind(connector):
    result = run(tiny_cnn(), UNLABELLED, distil(width=0.5, losses=(Features(),), connector=connector))
    assert not [name for name in result.model.graph.initializers if "connector" in name]
    (curve,) = [e.details["losses"] for e in result.ledger.of("distil") if "losses" in e.details]
    assert curve[-1] < curve[0]


def test_what_matters_to_the_teacher_weighs_the_features():
    result = run(tiny_cnn(), UNLABELLED, distil(width=0.5, losses=(Weighted(), Square())))
    (curve,) = [e.details["losses"] for e in result.ledger.of("distil") if "losses" in e.details]
    assert curve[-1] < curve[0]


def test_a_described_student_learns(tmp_path):
    (tmp_path / "student.toml").write_text('family = "resnet"\nwidths = [4, 6]\n')
    teacher = tiny_cnn()
    few, many = (
        run(teacher, UNLABELLED, distil(student=str(tmp_path / "student.toml"), epochs=n)).model for n in (1, 8)
    )
    assert distance(many, teacher) < distance(few, teacher)


def test_a_student_from_a_file_answers_under_the_names_of_the_teacher(tmp_path):
    other = tiny_cnn(seed=5)
    other.graph.inputs[0].name, other.graph.outputs[0].name = "picture", "scores"
    pumice.save(other, tmp_path / "student.onnx")
    result = run(tiny_cnn(), UNLABELLED, distil(student=str(tmp_path / "student.onnx"), epochs=1))
    assert [value.name for value in (*result.model.graph.inputs, *result.model.graph.outputs)] == ["x", "logits"]


def test_a_teacher_from_a_file_teaches_the_model_of_the_run(tmp_path):
    teacher, student = tiny_cnn(seed=5), tiny_cnn()
    pumice.save(teacher, tmp_path / "teacher.onnx")
    taught = run(student, UNLABELLED, distil(teacher=str(tmp_path / "teacher.onnx"), epochs=8)).model
    assert distance(taught, teacher) < 0.5 * distance(student, teacher)


def test_the_teacher_is_left_unchanged():
    teacher = tiny_cnn()
    before = ir.to_proto(teacher).SerializeToString(deterministic=True)
    run(teacher, UNLABELLED, distil(width=0.5, losses=(Weighted(),), epochs=1))
    assert ir.to_proto(teacher).SerializeToString(deterministic=True) == before


def test_the_cache_changes_nothing_but_the_time(tmp_path):
    plain, cached, again = (
        run(tiny_cnn(), UNLABELLED, distil(width=0.5, epochs=2, **cache)).model
        for cache in ({}, {"cache": str(tmp_path / "answers")}, {"cache": str(tmp_path / "answers")})
    )
    for name, value in plain.graph.initializers.items():
        for other in (cached, again):
            np.testing.assert_allclose(
                other.graph.initializers[name].const_value.numpy(), value.const_value.numpy(), atol=1e-5
            )


@pytest.mark.parametrize(("augment", "remembered"), [("flip", True), ("crop", False)])
def test_what_comes_twice_is_remembered(tmp_path, augment, remembered):
    run(tiny_cnn(), UNLABELLED, distil(width=0.5, epochs=2, augment=(augment,), cache=str(tmp_path / "answers")))
    assert (tmp_path / "answers").exists() == remembered


def test_the_same_inputs_give_the_same_bytes():
    first, second = (run(tiny_cnn(), pictures(96), distil(width=0.5, epochs=1)).model for _ in range(2))
    for name, value in first.graph.initializers.items():
        assert value.const_value.tobytes() == second.graph.initializers[name].const_value.tobytes()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    whole = run(tiny_cnn(), UNLABELLED, distil(width=0.5, epochs=2, snapshot=str(tmp_path / "a"))).model
    again = run(tiny_cnn(), UNLABELLED, distil(width=0.5, epochs=2, snapshot=str(tmp_path / "a"))).model
    for name, value in whole.graph.initializers.items():
        assert value.const_value.tobytes() == again.graph.initializers[name].const_value.tobytes()


def test_what_the_teacher_was_worth_is_told_over_pairs_of_trainings():
    labels = attrs.evolve(distil(width=0.5, epochs=1), pairs=2, loss=registry().make(Loss, "cross-entropy"))
    result = run(tiny_cnn(), pictures(96), labels)
    (found,) = [e for e in result.ledger.of("distil") if "alone" in e.details]
    assert len(found.details["alone"]) == len(found.details["taught"]) == 2
    assert found.reason in result.notes
    assert "2 seeds" in found.reason


def test_the_interval_is_that_of_the_differences():
    worth = Gain(metric="top1", alone=(0.5, 0.6, 0.7), taught=(0.6, 0.7, 0.8))
    assert worth.mean == pytest.approx(0.1)
    assert worth.interval == pytest.approx(0, abs=1e-12)
    assert Gain(metric="top1", alone=(0.5, 0.5), taught=(0.6, 0.8)).interval == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_without_labels_there_is_no_student_to_compare_with():
    with pytest.raises(DataError, match="set pairs to 0"):
        run(tiny_cnn(), UNLABELLED, distil(width=0.5, epochs=1, pairs=1))


# --- the objective ----------------------------------------------------------------------------------------------------


class Fixed:
    """A teacher that always answers zero."""

    def run(self, feeds):
        return {"logits": np.zeros((2, 5), np.float32)}


def objective(*losses, progress=0.0, **knobs):
    terms = tuple(Term(loss, (Connection("logits", "logits"),)) for loss in losses)
    return Distillation(terms=terms, answers=Fixed(), progress=lambda: progress, outputs=("logits",), **knobs)


def value(found, outputs=None):
    outputs = outputs or {"logits": np.ones((2, 5), np.float32)}
    return found.value_and_grad(outputs, SimpleNamespace(feeds={}, labels=None, size=2))


def test_losses_are_summed_by_weight():
    assert value(objective(Square(weight=2.0), Square(weight=0.5)))[0] == pytest.approx(2.5)
    np.testing.assert_allclose(value(objective(Square(weight=2.0)))[1]["logits"], 0.4)


def test_a_loss_is_switched_off_when_its_time_is_over():
    both = (Square(), Square(weight=2.0, until=0.5))
    assert value(objective(*both, progress=0.4))[0] == pytest.approx(3)
    assert value(objective(*both, progress=0.5))[0] == pytest.approx(1)


def test_the_labels_have_what_the_teacher_leaves():
    class Labels(Square):
        name = "labels"

        def value_and_grad(self, outputs, batch):
            return 10.0, {"logits": np.ones((2, 5))}

    found = value(objective(Square(), alpha=0.75, labels=Labels()))
    assert found[0] == pytest.approx(0.75 * 1 + 0.25 * 10)


NARROW = """
<ir_version: 10, opset_import: ["" : 21]>
narrow (float[N, 3, 8, 8] x) => (float[N, 5] logits) <float16[192, 5] w, float16[5] b> {
    half = Cast<to = 10>(x)
    flat = Flatten(half)
    scores = Gemm(flat, w, b)
    logits = Cast<to = 1>(scores)
}"""


def narrow():
    """A student that holds its weights and computes in float16."""
    proto = onnx.parser.parse_model(NARROW)
    del proto.graph.value_info[:]
    w = np.random.default_rng(0).standard_normal((192, 5)).astype(np.float16) / 16
    for name, array in (("w", w), ("b", np.zeros(5, np.float16))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def test_small_gradients_survive_in_float16_by_the_loss_scale():
    """Gradients below 6e-8 are zero in float16; multiplied by 2^15 they are not."""
    teacher, step = tiny_cnn(), distil(losses=(Square(weight=1e-7),))
    dataset = open_dataset(UNLABELLED, teacher)
    shared = context(teacher, dataset)
    trainer = Lesson.of(step, narrow(), teacher, dataset, shared).trainer(shared)
    portions = next(trainer.feeder.epoch(0))
    scale = trainer._scale.scale
    _, scaled = trainer.gradients(portions)
    trainer._scale = LossScale()
    _, plain = trainer.gradients(portions)
    assert not plain["w"].any()
    assert scale > 1
    assert (scaled["w"] != 0).mean() > 0.9


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_is_not_its_own_student():
    with pytest.raises(ModelError, match="student and teacher are the same network"):
        run(tiny_cnn(), UNLABELLED, distil())


def test_without_data_there_is_nothing_to_learn_from():
    with pytest.raises(DataError, match="needs data to train on"):
        run(tiny_cnn(), None, distil(width=0.5))


def test_a_loss_on_labels_is_no_loss_of_a_teacher():
    labels = registry().make(Loss, "cross-entropy")
    with pytest.raises(KnobError, match="'cross-entropy' compares with labels, not with a teacher"):
        run(tiny_cnn(), pictures(96), distil(width=0.5, losses=(labels,)))


def test_without_labels_some_loss_must_last_to_the_end():
    with pytest.raises(DataError, match="all switched off before the end"):
        run(tiny_cnn(), UNLABELLED, distil(width=0.5, losses=(Square(until=0.9),)))


def test_a_recipe_reads_back():
    losses = tuple(registry().make(Loss, {"name": name, "weight": 2.0}) for name in ("soft-targets", "feature-mse"))
    step = Distil(losses=losses, width=0.5, teacher="a.onnx")
    assert Recipe.from_toml(Recipe([step]).to_toml()) == Recipe([step])
    assert Recipe([Distil()]).resolved().steps[0].losses[0].name == "soft-targets"
