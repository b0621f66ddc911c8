"""In which order the copy engine fetches rows of B, worked out without a GPU."""

import itertools

import pytest

from pumice_cuda.tensor_maps import columns_geometry

N, K = 256, 384


@pytest.mark.parametrize("beside", [2, 4, 8])
def test_the_sums_of_a_thread_belong_to_neighbouring_columns(beside):
    sizes, steps, extents = columns_geometry((N, 1, K), (K, K, 1), 1, 128, 128, beside)
    fetched = [  # row of B by row of the buffer
        sum(place * step for place, step in zip(places, steps[1:], strict=True)) // K
        for places in (p[::-1] for p in itertools.product(*(range(extent) for extent in extents[:1:-1])))
    ]
    assert sorted(fetched) == list(range(128))
    assert (sizes[2] - 1) * steps[1] + (sizes[3] - 1) * steps[2] + (sizes[4] - 1) * steps[3] == (N - 1) * K
    for group, lane in itertools.product(range(0, 128, 8 * beside), range(4)):
        held = [fetched[group + 8 * block + 2 * lane + i] for i in range(2) for block in range(beside)]
        assert held == list(range(group + 2 * beside * lane, group + 2 * beside * (lane + 1)))


def test_rows_come_as_they_lie_where_nobody_asks_for_more():
    sizes, steps, extents = columns_geometry((100, 9, 64), (9 * 64, 64, 1), 1, 128, 64, 0)
    assert (sizes, extents) == ((64, 9, 100, 1, 1), (64, 1, 128, 1, 1))
    assert steps[:2] == (64, 9 * 64)
