"""Grids, clusters and arguments, without a launch."""

import numpy as np
import pytest

from pumice_cuda import launching
from pumice_cuda.launching import blocks, clusters


def test_blocks_cover_the_elements():
    assert [blocks(n, 256) for n in (0, 1, 256, 257, 10_000)] == [1, 1, 1, 2, 40]
    assert blocks(10_000, 256, most=8) == 8


def test_a_grid_counts_blocks_and_a_cluster_divides_it():
    assert clusters((132, 2), None) == (132, 2)
    assert clusters((132, 2), (2, 1)) == (66, 2, 1)
    with pytest.raises(ValueError, match="do not divide"):
        clusters(131, 2)


@pytest.mark.parametrize("bare", [1, 2.0, True])
def test_a_number_without_a_c_type_is_refused(bare):
    with pytest.raises(TypeError, match="has no C type"):
        launching._argument(bare)


def test_numbers_of_numpy_pass_as_they_are_and_nothing_as_a_null_pointer():
    assert launching._argument(np.int32(3)) == np.int32(3)
    assert launching._argument(np.float64(0.5)) == np.float64(0.5)
    assert launching._argument(None) == 0
