"""Values are paired by name, by pattern, or layer for layer, and brought to one width."""

import numpy as np
import pytest

from pumice.distil.connectors import Connectors
from pumice.distil.students import shortened
from pumice.distil.taps import Pair, attended_values, attention_maps, channel_axis, features, named_values, pairs
from pumice.errors import ModelError
from pumice.model import clone
from pumice.plan import compile_plan
from pumice.prune import find_groups, remove
from pumice.testing.models import random_feeds

from .conftest import Features, Square


def narrow(model, keep):
    """The model with the first `keep` channels of every group."""
    groups = find_groups(model)
    cuts = {}
    for group in groups.free:
        cuts |= group.cuts(range(keep, group.channels))
    return remove(groups.wiring, cuts)


def test_outputs_are_compared_where_nothing_is_said(network):
    model = network("gpt", width=8, heads=2, layers=2)
    assert pairs(Square(), model, model) == [Pair("logits", "logits")]


def test_layers_of_different_depths_are_paired_with_the_last_at_the_last(network):
    student, teacher = (network("gpt", width=8, heads=2, layers=n) for n in (2, 6))
    assert [pair.teacher for pair in pairs(Features(), student, teacher)] == ["layer2.add2.out", "layer5.add2.out"]


def test_pictures_are_paired_at_the_same_resolution(network):
    student, teacher = network("resnet", widths=[4, 6]), network("resnet", widths=[6, 8], blocks=2)
    assert pairs(Features(), student, teacher) == [
        Pair("stage0.block0.relu.out", "stage0.block1.relu.out"),
        Pair("stage1.block0.relu.out", "stage1.block1.relu.out"),
    ]


def test_attention_is_found_by_what_it_multiplies(network):
    model = network("bert", width=8, heads=2, layers=2)
    assert [value.name for value in attention_maps(model)] == ["layer0.shares.out", "layer1.shares.out"]
    assert [value.name for value in attended_values(model)] == ["layer0.v_heads.out", "layer1.v_heads.out"]


def test_patterns_name_values_and_nodes(network):
    model = network("gpt", width=8, heads=2, layers=2)
    by_node, by_value = (pairs(Square(at=(at,)), model, model) for at in ("layer*.add1", "layer*.add1.out"))
    assert by_node == by_value == [Pair(f"layer{i}.add1.out", f"layer{i}.add1.out") for i in range(2)]


def test_a_value_may_be_paired_with_one_of_another_name(network):
    student, teacher = (network("gpt", width=8, heads=2, layers=n) for n in (1, 3))
    loss = Square(at=("layer0.add2=layer2.add1",))
    assert pairs(loss, student, teacher) == [Pair("layer0.add2.out", "layer2.add1.out")]


def test_a_pattern_that_names_nothing_is_refused_with_the_nearest(network):
    model = network("gpt", width=8, heads=2, layers=2)
    with pytest.raises(ModelError, match=r"the student has no such value or node; did you mean 'layer0.add1'"):
        pairs(Square(at=("layer0.ad1",)), model, model)


def test_nothing_in_common_is_refused(network):
    with pytest.raises(ModelError, match="finds no features that student and teacher have in common"):
        pairs(Features(), network("resnet", widths=[4]), network("gpt", width=8, heads=2))


def test_channels_lie_behind_convolutions_on_axis_one_and_elsewhere_last(network):
    assert {channel_axis(v) for v in features(network("resnet", widths=[4, 6]))} == {1}
    assert {channel_axis(v) for v in features(network("gpt", width=8, heads=2))} == {2}


@pytest.mark.parametrize(("family", "sizes"), [("resnet", {"widths": [4, 6]}), ("gpt", {"width": 8, "heads": 2})])
def test_a_learned_connector_has_the_width_of_the_teacher(network, family, sizes):
    wider = {key: [2 * w for w in v] if isinstance(v, list) else 2 * v for key, v in sizes.items()}
    student, teacher = network(family, **sizes), network(family, **wider)
    (pair, *_) = pairs(Features(), student, teacher)
    connection = Connectors(student, teacher).connect(pair, same_width=True)
    feeds = random_feeds(1)[0] if family == "resnet" else {"ids": np.arange(6).reshape(2, 3)}
    ours = compile_plan(student, [connection.student]).run(feeds)[connection.student]
    theirs = compile_plan(teacher, [connection.teacher]).run(feeds)[connection.teacher]
    assert ours.shape == theirs.shape


def test_losses_that_need_no_common_width_get_no_connector(network):
    student, teacher = network("resnet", widths=[4]), network("resnet", widths=[8])
    before = len(student.graph)
    (pair,) = pairs(Features(), student, teacher)
    assert Connectors(student, teacher).connect(pair, same_width=False).student == pair.student
    assert len(student.graph) == before


def test_losses_that_compare_the_same_value_share_its_connector(network):
    student, teacher = network("resnet", widths=[4]), network("resnet", widths=[8])
    (pair,) = pairs(Features(), student, teacher)
    connectors = Connectors(student, teacher)
    first, second = (connectors.connect(pair, same_width=True).student for _ in range(2))
    assert first == second != pair.student


def test_a_pruned_student_is_compared_with_the_channels_that_it_kept(network):
    teacher = network("resnet", widths=[6, 8])
    student = narrow(teacher, 4)
    feeds = random_feeds(1)[0]
    (pair, _) = pairs(Features(), student, teacher)
    before = len(student.graph)
    connection = Connectors(student, teacher).connect(pair, same_width=True)
    np.testing.assert_array_equal(connection.kept, range(4))
    assert len(student.graph) == before
    theirs = compile_plan(teacher, [connection.teacher]).run(feeds)[connection.teacher]
    np.testing.assert_array_equal(connection.seen(theirs), theirs[:, :4])


def test_a_student_that_remembers_nothing_cannot_be_compared_by_what_it_kept(network):
    student, teacher = network("resnet", widths=[4]), network("resnet", widths=[8])
    (pair,) = pairs(Features(), student, teacher)
    with pytest.raises(ModelError, match="does not remember which of the 8 channels"):
        Connectors(student, teacher, "kept").connect(pair, same_width=True)


def test_layers_left_out_leave_the_names_of_the_others(network):
    teacher = network("gpt", width=8, heads=2, layers=4)
    student = shortened(clone(teacher), 0.5)
    assert set(named_values(student)) <= set(named_values(teacher))
