"""Whatever keeps a student from learning from a teacher is said before anything runs."""

import onnx_ir as ir
import pytest

from pumice.distil.compatibility import aligned, mismatches, require_compatible
from pumice.errors import ModelError
from pumice.testing.models import tiny_cnn

from .conftest import words


def test_a_network_can_learn_from_itself():
    require_compatible(tiny_cnn(), tiny_cnn())


def test_other_names_are_no_obstacle():
    other = tiny_cnn()
    other.graph.inputs[0].name, other.graph.outputs[0].name = "picture", "scores"
    require_compatible(other, tiny_cnn())
    renamed = aligned(other, tiny_cnn())
    assert (renamed.graph.inputs[0].name, renamed.graph.outputs[0].name) == ("x", "logits")


def test_other_classes_are_refused():
    other = tiny_cnn()
    other.graph.outputs[0].shape = ir.Shape(["N", 7])
    (found,) = mismatches(other, tiny_cnn())
    assert found.startswith("output 'logits' is [N,7] in the student and [N,5] in the teacher: give a student that")


def test_pictures_of_another_size_are_refused():
    other = tiny_cnn()
    other.graph.inputs[0].shape = ir.Shape(["N", 3, 16, 16])
    with pytest.raises(ModelError, match=r"input 'x' is \[N,3,16,16\] in the student and \[N,3,8,8\] in the teacher"):
        require_compatible(other, tiny_cnn())


def test_words_and_pictures_are_refused():
    assert any("INT64 in the student, FLOAT in the teacher" in each for each in mismatches(words(), tiny_cnn()))


def test_another_vocabulary_is_refused(network):
    found = list(mismatches(network("gpt", width=4, heads=1, vocabulary=7), words()))
    assert len(found) == 1
    assert found[0].startswith("the vocabularies of input 'ids' differ, 7 words in the student and 11 in the teacher")


def test_every_mismatch_is_told():
    other = tiny_cnn()
    other.graph.inputs[0].shape, other.graph.outputs[0].shape = ir.Shape(["N", 3, 4, 4]), ir.Shape(["N", 2])
    with pytest.raises(ModelError, match=r"cannot learn from this teacher: input 'x' .*; also, output 'logits'"):
        require_compatible(other, tiny_cnn())


def test_a_missing_input_is_refused():
    other = words()
    other.graph.inputs.append(ir.Value(name="mask", shape=ir.Shape(["N", "T"]), type=ir.TensorType(ir.DataType.INT64)))
    (found,) = mismatches(other, words())
    assert found.startswith("the student has 2 inputs ('ids', 'mask'), the teacher 1 ('ids')")
