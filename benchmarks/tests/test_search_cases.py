import numpy as np
import pytest
from models import Evaluation
from search_cases import OF_A_TENTH, QUESTIONS, framings, typed_files
from search_cases.scores import score


def test_framed_as_usual_a_picture_stays_the_same_and_further_away_it_has_white_around_it():
    picture = np.random.default_rng(0).integers(0, 255, (3, 224, 224)).astype(np.float32)
    picture = (picture - 127) / 128
    assert (framings._framed(picture, 1.0) == picture).all()
    assert (framings._framed(picture, 1.6)[:, :20] == 1.0).all()


def test_of_the_types_each_gives_a_file_in_turn_and_no_content_comes_twice(tmp_path):
    contents = {"a1": b"one" * 99, "a2": b"one" * 99, "a3": b"two" * 99, "b1": b"three" * 99}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = {"a": [tmp_path / "a1", tmp_path / "a2", tmp_path / "a3"], "b": [tmp_path / "b1"]}
    rows, kinds = typed_files._distinct(files, 9, set())
    assert kinds == ["a", "b", "a"]
    assert typed_files._distinct(files, 9, {rows[0].tobytes()})[1] == ["b", "a"]


def test_what_recipes_are_chosen_by_does_not_judge():
    question = QUESTIONS["fashion_vit"]
    scores = np.r_[np.ones(question.shared), np.zeros(7)]
    judged = question.judged(Evaluation(metric="accuracy", value=0.9, scores=scores, answers=scores))
    assert (judged.value, len(judged.scores), len(judged.answers)) == (0.0, 7, 7)


@pytest.mark.parametrize("model", OF_A_TENTH)
def test_a_tenth_of_the_size_is_asked_with_the_data_of_any_size(model):
    tenth = QUESTIONS[f"{model}, 10x smaller"]
    assert tenth.limits == {"max_drop": 0.01, "size": 10.0}
    any_size = QUESTIONS.get(model, tenth)
    assert (tenth.provide, tenth.choosing, tenth.judge) == (any_size.provide, any_size.choosing, any_size.judge)


def test_a_sample_without_a_label_scores_what_its_worst_output_does():
    known = [np.array([3.0, 4.0]), np.array([1.0, 0.0])]
    found = [np.array([6.0, 8.0]), np.array([1.0, 1.0])]
    assert score("cosine", found, known) == pytest.approx(0.5**0.5)
    assert score("agreement", found, known) == 1.0
    assert score("top1", found, known, label=0) == 0.0
