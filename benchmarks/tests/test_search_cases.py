import numpy as np
from models import Evaluation
from search_cases import QUESTIONS, framings, typed_files


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
