"""The runtime on a GPU: the contract of every runtime, and recordings."""

import numpy as np
import pytest

from pumice.quantize.simulation import simulate
from pumice.testing import RuntimeContract
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_cuda.runtime.strategy import CudaRuntime
from pumice_cuda.transfers import counting


class TestCudaRuntime(RuntimeContract):
    strategy = CudaRuntime


@pytest.mark.parametrize("graphs", [True, False])
def test_a_replay_gives_what_single_operators_give(graphs):
    opened, batches = CudaRuntime(graphs=graphs).open(tiny_cnn()), random_feeds(4)
    alone = [opened.run(feeds) for feeds in batches]
    for feeds, first in zip(batches, alone, strict=True):
        with counting() as moved:
            again = opened.run(feeds)
        assert (moved.into, moved.out) == (1, 1)
        for name, value in first.items():
            np.testing.assert_array_equal(again[name], value)
    assert ("replayed" in opened.description) == graphs


def test_integers_are_those_of_the_simulation(quantized):
    (feeds,) = random_feeds(1)
    got, want = CudaRuntime().open(quantized).run(feeds), simulate(quantized).run(feeds)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
