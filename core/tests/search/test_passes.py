"""What a pass of training takes, and how many a repair has."""

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.errors import PumiceError
from pumice.search.passes import MOST_PASSES, rounded_passes, seconds_of_a_pass, wanted_passes
from pumice.testing.models import random_feeds, tiny_cnn, weightless


def samples(count):
    (feeds,) = random_feeds(1, size=count)
    return open_dataset({**feeds, "labels": np.zeros(count, np.int64)}, tiny_cnn())


def test_a_pass_over_more_samples_takes_longer():
    few, many = (seconds_of_a_pass(tiny_cnn(), samples(count)) for count in (20, 2000))
    assert 0 < few < many


def test_a_model_that_cannot_be_trained_says_so():
    plain = open_dataset({"x": np.zeros((4, 4), np.float32)}, weightless())
    with pytest.raises(PumiceError, match="no floating-point parameter to train"):
        seconds_of_a_pass(weightless(), plain)


@pytest.mark.parametrize(("count", "passes"), [(0.0, 0), (0.9, 0), (1.0, 1), (3.9, 3), (5.0, 4), (7.9, 6), (17.0, 16)])
def test_passes_come_in_few_numbers(count, passes):
    assert rounded_passes(count) == passes


def test_few_samples_are_wanted_more_often_but_not_without_end():
    assert wanted_passes(64_000) < wanted_passes(6_400) <= MOST_PASSES == wanted_passes(1)
