"""Assistants of sizes in between: a geometric row, each stage checked, resumable."""

import attrs
import numpy as np
import pytest

from pumice import compress
from pumice.distil.connectors import Connectors
from pumice.distil.students import weights
from pumice.distil.taps import Pair
from pumice.errors import BudgetExceeded
from pumice.prune import find_groups, remove
from pumice.recipe import Recipe
from pumice.steps import Distil
from pumice.testing.models import tiny_cnn

from .conftest import Features, Square, pictures

STEP = Distil(losses=(Square(), Features()), width=0.25, assistants=1, epochs=2, batch=16, lr=0.01)


def run(step, data=None):
    data = pictures(96) if data is None else data
    return compress(tiny_cnn(), data, Recipe([step]), runtime="reference", measure=False)


def chain(result):
    (found,) = [e.details["chain"] for e in result.ledger.of("distil") if "chain" in e.details]
    return found


def test_widths_fall_in_equal_factors():
    result = run(STEP)
    widths = [link["weights"] for link in chain(result)]
    assert widths[0] == weights(tiny_cnn())
    assert widths[0] / widths[1] == pytest.approx(widths[1] / widths[2], rel=0.35)
    assert result.model.graph.initializers["w1"].shape[0] == 4


def test_every_stage_is_scored_against_the_first_teacher():
    links = chain(run(STEP))
    assert [link["score"] is None for link in links] == [True, False, False]


def test_a_student_that_is_given_learns_from_assistants_of_the_teacher(tmp_path):
    (tmp_path / "student.toml").write_text('family = "resnet"\nwidths = [4]\n')
    result = run(attrs.evolve(STEP, student=str(tmp_path / "student.toml"), width=1.0))
    first, middle, last = (link["weights"] for link in chain(result))
    assert first > middle > last
    assert last == weights(result.model)


def test_a_stage_that_loses_too_much_ends_the_run_and_says_which():
    with pytest.raises(BudgetExceeded, match=r"stage 1 of 2 keeps .* less than the 100.0% it must"):
        run(attrs.evolve(STEP, keep_score=1.0, lr=1e-9), {"x": pictures(96)["x"]})


def test_a_run_goes_on_with_the_first_stage_that_is_not_done(tmp_path):
    step = attrs.evolve(STEP, snapshot=str(tmp_path / "state.npz"))
    whole = run(step).model
    (tmp_path / "state.stage2.onnx").unlink()
    (tmp_path / "state.stage2.npz").unlink()
    before = (tmp_path / "state.stage1.onnx").stat().st_mtime_ns
    again = run(step).model
    assert (tmp_path / "state.stage1.onnx").stat().st_mtime_ns == before
    for name, value in whole.graph.initializers.items():
        assert value.const_value.tobytes() == again.graph.initializers[name].const_value.tobytes()


def test_channels_kept_of_a_teacher_that_was_cut_itself():
    def cut(model, gone):
        groups = find_groups(model)
        (group,) = [g for g in groups.free if any(m.place.value == "w1" for m in g.writers)]
        return remove(groups.wiring, group.cuts(gone))

    teacher = cut(tiny_cnn(), [0, 5])
    student = cut(teacher, [1, 13])
    connection = Connectors(student, teacher).connect(Pair("r1", "r1"), same_width=True)
    assert list(connection.kept) == [i for i in range(14) if i not in {1, 13}]
    np.testing.assert_array_equal(
        teacher.graph.initializers["w1"].const_value.numpy()[connection.kept],
        student.graph.initializers["w1"].const_value.numpy(),
    )
