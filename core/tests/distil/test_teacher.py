"""The teacher's answers are remembered by content, within bounds, and attributions say what matters to it."""

import numpy as np
import pytest

from pumice.distil.attribution import Attribution
from pumice.distil.teacher import Cached, Remembered, identity
from pumice.errors import DataError
from pumice.plan import compile_plan
from pumice.testing.models import random_feeds, tiny_cnn


class Counting:
    """A teacher that counts the samples it was asked about."""

    def __init__(self):
        self.plan, self.asked = compile_plan(tiny_cnn(), ["r2", "logits"]), 0

    def run(self, feeds):
        self.asked += len(feeds["x"])
        return self.plan.run(feeds)


def cached(path, teacher, megabytes=10.0, values=("r2", "logits")):
    return Cached(teacher, path, megabytes, identity("teacher", values))


def test_what_is_remembered_is_what_was_answered(tmp_path):
    feeds = random_feeds(1)[0]
    teacher = Counting()
    remembered = cached(tmp_path / "answers", teacher)
    first, second = remembered.run(feeds), remembered.run(feeds)
    assert teacher.asked == 4
    for name, value in teacher.run(feeds).items():
        np.testing.assert_array_equal(first[name], value)
        np.testing.assert_array_equal(second[name], value)


def test_other_batches_of_the_same_samples_are_known(tmp_path):
    x = random_feeds(1, size=6)[0]["x"]
    teacher = Counting()
    remembered = cached(tmp_path / "answers", teacher)
    whole = remembered.run({"x": x})
    shuffled = remembered.run({"x": x[[5, 0, 3]]})
    assert teacher.asked == 6
    np.testing.assert_array_equal(shuffled["logits"], whole["logits"][[5, 0, 3]])


def test_the_next_run_finds_the_file(tmp_path):
    feeds = random_feeds(1)[0]
    cached(tmp_path / "answers", Counting()).run(feeds)
    teacher = Counting()
    cached(tmp_path / "answers", teacher).run(feeds)
    assert teacher.asked == 0


def test_trainings_at_the_same_time_share_the_file(tmp_path):
    teachers = Counting(), Counting()
    first, second = (cached(tmp_path / "answers", teacher) for teacher in teachers)
    for seed, order in enumerate(((first, second), (second, first))):
        for one in order:
            one.run(random_feeds(1, seed=seed)[0])
    assert [teacher.asked for teacher in teachers] == [4, 4]


def test_another_teacher_finds_nothing(tmp_path):
    feeds = random_feeds(1)[0]
    cached(tmp_path / "answers", Counting()).run(feeds)
    teacher = Counting()
    Cached(teacher, tmp_path / "answers", 10.0, identity("another", ["r2", "logits"])).run(feeds)
    assert teacher.asked == 4


def test_a_full_cache_computes_the_rest(tmp_path):
    x = random_feeds(1, size=8)[0]["x"]
    teacher = Counting()
    row = sum(value[:1].nbytes for value in teacher.plan.run({"x": x}).values()) + 100
    remembered = cached(tmp_path / "answers", teacher, megabytes=3 * row / 1e6)
    for _ in range(2):
        assert len(remembered.run({"x": x})["logits"]) == 8
    assert teacher.asked == 8 + 5


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("this is no table of anything, and long enough to be looked at" * 20)
    with pytest.raises(DataError, match="cannot hold the teacher's answers"):
        cached(tmp_path / "notes.txt", Counting())


def test_the_same_batch_is_asked_about_once():
    teacher = Counting()
    remembered, feeds = Remembered(teacher), random_feeds(1)[0]
    remembered.run(feeds)
    remembered.run({**feeds})
    assert teacher.asked == 4
    remembered.run(random_feeds(1, seed=1)[0])
    assert teacher.asked == 8


def test_attribution_is_the_gradient_of_the_answer_times_the_value():
    model, feeds = tiny_cnn(), random_feeds(1)[0]
    values = compile_plan(model, ["flat"]).run(feeds)
    found = Attribution.of(model, ["flat"]).run(feeds, values, "gradient")["flat"]
    answers = compile_plan(model).run(feeds)["logits"].argmax(axis=1)
    w3 = model.graph.initializers["w3"].const_value.numpy()
    expected = np.abs(values["flat"] * w3[answers])
    np.testing.assert_allclose(found, expected / expected.mean(axis=1, keepdims=True), rtol=1e-4)


def test_importance_is_one_on_the_average_of_every_sample():
    model, feeds = tiny_cnn(), random_feeds(1)[0]
    values = compile_plan(model, ["r1", "r2"]).run(feeds)
    for method in ("gradient", "integrated"):
        for found in Attribution.of(model, ["r1", "r2"]).run(feeds, values, method).values():
            np.testing.assert_allclose(found.reshape(4, -1).mean(axis=1), 1, rtol=1e-4)


def test_integrated_gradients_are_the_mean_of_those_on_the_way_from_zero():
    model, feeds = tiny_cnn(), random_feeds(1)[0]
    flat = compile_plan(model, ["flat"]).run(feeds)["flat"]
    w3, b3 = (model.graph.initializers[name].const_value.numpy() for name in ("w3", "b3"))
    gradients = [w3[(flat * k / 8 @ w3.T + b3).argmax(axis=1)] for k in range(1, 9)]
    expected = np.abs(flat * np.mean(gradients, axis=0))
    found = Attribution.of(model, ["flat"]).run(feeds, {"flat": flat}, "integrated")["flat"]
    np.testing.assert_allclose(found, expected / expected.mean(axis=1, keepdims=True), rtol=1e-4)


def test_a_value_that_is_an_output_itself_may_matter():
    model, feeds = tiny_cnn(), random_feeds(1)[0]
    (flat,) = [v for node in model.graph for v in node.outputs if v.name == "flat"]
    model.graph.outputs.append(flat)
    values = compile_plan(model, ["flat"]).run(feeds)
    found = Attribution.of(model, ["flat"]).run(feeds, values, "gradient")["flat"]
    np.testing.assert_allclose(found.mean(axis=1), 1, rtol=1e-4)
