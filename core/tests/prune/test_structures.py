"""Every structure has the groups it should, and loses channels without becoming another function."""

import numpy as np
import pytest

from pumice.measure import pick_runtime
from pumice.prune import find_groups, kept_indices, prove, remove, union
from pumice.prune.rounds import random_feeds

from .structures import STRUCTURES

every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)


def some(group, seed=0):
    """About a third of the channels, at random."""
    count = max(1, round(0.3 * group.channels))
    return np.random.default_rng(seed).choice(group.channels, count, replace=False).tolist()


def proof(found, cuts, model):
    return prove(found.wiring, cuts, remove(found.wiring, cuts), [random_feeds(model, 1)], pick_runtime("reference"))


@every_structure
def test_the_groups_are_found(structure):
    found = find_groups(structure.model())
    assert {str(group.root): group.channels for group in found.free} == structure.groups


@every_structure
def test_each_group_alone_can_lose_channels(structure):
    model = structure.model()
    found = find_groups(model)
    for group in found.free:
        held = [proof(found, group.cuts(some(group, seed)), model) for seed in range(3)]
        assert max(proof.error for proof in held) < 1e-5
        assert max(proof.effect for proof in held) > 1e-4  # the channels said something


@every_structure
def test_all_groups_together_can_lose_channels(structure):
    model = structure.model()
    found = find_groups(model)
    assert proof(found, union(group.cuts(some(group)) for group in found.free), model).error < 1e-5


@every_structure
def test_a_pruned_model_can_be_pruned_again_and_remembers_the_first_indices(structure):
    model = structure.model()
    first = find_groups(model)
    once = remove(first.wiring, union(group.cuts(some(group)) for group in first.free))
    again = find_groups(once)
    cuts = union(group.cuts([0]) for group in again.free if group.channels > 1)
    twice = remove(again.wiring, cuts)
    original = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    prove(again.wiring, cuts, twice, [random_feeds(model, 1)], pick_runtime("reference"))
    for name, axes in kept_indices(twice).items():
        whole = original[name]
        for axis, indices in axes.items():
            assert len(indices) == twice.graph.initializers[name].shape[axis]
            whole = np.take(whole, indices, axis)
        if whole.shape == tuple(twice.graph.initializers[name].shape) and "group" not in name:
            assert np.isin(twice.graph.initializers[name].const_value.numpy(), original[name]).all()
