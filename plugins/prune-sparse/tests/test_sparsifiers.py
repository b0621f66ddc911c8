import numpy as np

from pumice.prune.sparsity import Pattern
from pumice.testing import SparsifierContract
from pumice_prune_sparse import Magnitude, SparseGpt, Wanda


class TestMagnitude(SparsifierContract):
    strategy = Magnitude


class TestWanda(SparsifierContract):
    strategy = Wanda


class TestSparseGpt(SparsifierContract):
    strategy = SparseGpt


def output_error(sparsifier, pattern):
    """Mean square of what a layer's output loses, relative to the output."""
    weights, moments = TestWanda().layer()
    change = sparsifier.sparsified(weights, moments, pattern) - weights
    return np.trace(change @ moments @ change.T) / np.trace(weights @ moments @ weights.T)


def test_looking_at_inputs_is_better_than_not_and_making_up_better_still():
    for pattern in (Pattern(ratio=0.5), Pattern.of("2:4", 0.0)):
        errors = [output_error(sparsifier, pattern) for sparsifier in (Magnitude(), Wanda(), SparseGpt())]
        assert errors == sorted(errors, reverse=True)
        assert errors[2] < 0.8 * errors[0]
