"""The `sparsify` step: zeros stay through training and quantization, and both sizes are told."""

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

import pumice
from pumice import Recipe, Sparsifier
from pumice.errors import BudgetExceeded, KnobError
from pumice.model import constant, nodes, weight_of
from pumice.prune.sparsity import Pattern
from pumice.steps import Sparsify, Train
from pumice.testing.models import random_feeds, tiny_cnn


@attrs.frozen(kw_only=True)
class Smallest(Sparsifier):
    name = "smallest"

    def sparsified(self, weights, moments, pattern):
        return np.where(pattern.keep(np.abs(weights)), weights, 0.0)


HALF = Sparsify(sparsifier=Smallest(), smallest=1)


def run(*steps, data=None):
    return pumice.compress(tiny_cnn(), data, Recipe(steps), measure=False)


def zeros(model):
    """By node, where its weights are zero."""
    return {node.name: constant(weight_of(node)) == 0 for node in nodes(model) if weight_of(node) is not None}


@given(st.integers(1, 40), st.sampled_from(["unstructured", "2:4", "1:4", "4:8"]), st.floats(0, 0.99))
def test_no_run_keeps_more_than_its_share(inputs, name, ratio):
    pattern = Pattern.of(name, ratio)
    kept = pattern.keep(np.random.default_rng(0).random((3, inputs)))
    assert kept.shape == (3, inputs)
    if pattern.run:
        whole = inputs - inputs % pattern.run
        assert (kept[:, :whole].reshape(-1, pattern.run).mean(axis=1) == 1 - pattern.ratio).all()


def test_half_of_the_weights_are_zero_and_both_sizes_are_told():
    result = run(HALF)
    assert {name: round(float(z.mean()), 1) for name, z in zeros(result.model).items()} == dict.fromkeys(
        zeros(result.model), 0.5
    )
    told = result.ledger.of("sparsify", "applied")[-1].details
    assert told["compressed_bytes"] < 0.55 * told["dense_bytes"]
    assert any("as slowly as with any number" in note for note in result.notes)


def test_zeros_stay_zero_in_training():
    data = [(feeds, np.array([i % 5])) for i, feeds in enumerate(random_feeds(64, size=1))]
    before = zeros(run(HALF).model)
    after = run(HALF, Train(epochs=1, batch=16), data=data)
    for name, mask in zeros(after.model).items():
        np.testing.assert_array_equal(mask, before[name])


def test_zeros_stay_zero_in_integers():
    data = random_feeds(16, size=1)
    result = run(HALF, Recipe.default().steps[0], data=data)
    masks = {mask.shape: mask for mask in zeros(run(HALF).model).values()}
    arrays = [constant(v) for v in result.model.graph.initializers.values() if v.dtype.name == "INT8"]
    integers = [array for array in arrays if array.shape in masks]
    assert integers
    for array in integers:
        assert not array[masks[array.shape]].any()


def test_too_much_is_rolled_back():
    with pytest.raises(BudgetExceeded, match="make fewer weights zero"):
        run(attrs.evolve(HALF, ratio=0.99, max_drop=0.001), data=random_feeds(16, size=1))


def test_an_excluded_layer_stays_dense():
    result = run(attrs.evolve(HALF, exclude=("conv_0",)))
    assert not zeros(result.model)["conv_0"].any()
    with pytest.raises(KnobError, match="'covn'"):
        run(attrs.evolve(HALF, exclude=("covn",)))
