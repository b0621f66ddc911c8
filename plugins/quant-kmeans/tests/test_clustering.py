"""k-means on the line: the optimum against exhaustion, Lloyd's algorithm against its own definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice_quant_kmeans import clustering
from pumice_quant_kmeans.clustering import (
    Rows,
    clustered,
    exact_centroids,
    linear_start,
    lloyd,
    plus_plus_start,
)
from pumice_quant_kmeans.scheme import huffman_bits

ROW = st.lists(st.integers(-20, 20), min_size=5, max_size=9)


def loss(row, heavy, centroids):
    return float(np.sum(heavy * ((row[:, None] - centroids) ** 2).min(axis=1)))


def least_loss(row, heavy, entries):
    """Over all ways to cut the sorted row into intervals."""
    order = np.argsort(row)
    row, heavy = row[order], heavy[order]
    cuts = itertools.combinations_with_replacement(range(len(row) + 1), entries - 1)
    means = (
        [np.average(row[a:b], weights=heavy[a:b]) for a, b in itertools.pairwise((0, *cut, len(row))) if b > a]
        for cut in cuts
    )
    return min(loss(row, heavy, np.array(each)) for each in means)


@settings(deadline=None)
@given(ROW, st.integers(2, 4), st.integers(0, 1000))
def test_the_exact_start_is_the_optimum(numbers, entries, seed):
    row = np.array(numbers, np.float64)
    heavy = np.random.default_rng(seed).uniform(0.1, 2.0, len(row))
    (found,) = exact_centroids(row[None], heavy[None], entries)
    assert loss(row, heavy, found) <= least_loss(row, heavy, entries) + 1e-8


@pytest.mark.parametrize("start", [linear_start, lambda rows, count: plus_plus_start(rows, count, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_ends_where_every_centroid_is_the_mean_of_what_is_nearest_to_it(start, weighted):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((5, 400)).astype(np.float32)
    heavy = rng.uniform(0.1, 2.0, points.shape)
    rows = Rows.of(points, heavy if weighted else None)
    found = lloyd(rows, start(rows, 8))
    for row, weights, centroids in zip(points.astype(float), heavy, found, strict=True):
        nearest = np.abs(row[:, None] - centroids).argmin(axis=1)
        assert set(nearest) == set(range(8))
        for j in range(8):
            mean = np.average(row[nearest == j], weights=weights[nearest == j] if weighted else None)
            assert mean == pytest.approx(centroids[j], abs=0.05)


def test_lloyd_comes_close_to_the_optimum():
    points = np.random.default_rng(1).standard_normal((3, 300)).astype(np.float32)
    rows, ones = Rows.of(points), np.ones(300)
    found, best = lloyd(rows, plus_plus_start(rows, 16, 0)), exact_centroids(points, None, 16)
    for row, ours, optimum in zip(points.astype(float), found, best, strict=True):
        assert loss(row, ones, optimum) <= loss(row, ones, ours) <= 1.5 * loss(row, ones, optimum)


@pytest.mark.parametrize("weighted", [False, True])
def test_long_rows_in_bins_lose_what_sorted_ones_do(weighted, monkeypatch):
    rng = np.random.default_rng(2)
    points = rng.standard_t(4, (2, 100_000)).astype(np.float32)
    heavy = rng.uniform(0.0, 2.0, points.shape) if weighted else None
    binned = Rows.of(points, heavy)
    monkeypatch.setattr(clustering, "BINS", points.shape[1])
    whole = Rows.of(points, heavy)
    assert binned.points.shape[1] < whole.points.shape[1]
    np.testing.assert_allclose(binned.first[:, -1], whole.first[:, -1], rtol=1e-5, atol=1e-2)
    every, start = np.ones(points.shape) if heavy is None else heavy, linear_start(whole, 16)
    for row, weights, ours, theirs in zip(points, every, lloyd(binned, start), lloyd(whole, start), strict=True):
        assert loss(row, weights, ours) == pytest.approx(loss(row, weights, theirs), rel=0.01)


def test_centroids_that_nothing_is_nearest_to_are_put_to_use():
    points = np.concatenate([np.zeros(50), np.linspace(10, 11, 50)])[None]
    found = lloyd(Rows.of(points), np.array([[0.0, 3.0, 4.0, 10.5]]))  # two of them are nearest to nothing
    assert len(set(np.abs(points[0][:, None] - found).argmin(axis=1))) == 4


def test_rows_with_fewer_values_than_centroids_are_kept_exactly():
    points = np.array([[1.0, 1.0, 2.0, 5.0]])
    for found in (exact_centroids(points, None, 8), lloyd(Rows.of(points), plus_plus_start(Rows.of(points), 8, 0))):
        assert loss(points[0], np.ones(4), found[0]) == pytest.approx(0.0, abs=1e-12)


def test_huffman_codes_are_as_long_as_their_tree_says():
    assert huffman_bits(np.array([1, 1, 1, 1])) == 8
    assert huffman_bits(np.array([8, 4, 2, 1, 1])) == 8 * 1 + 4 * 2 + 2 * 3 + 1 * 4 + 1 * 4
    assert huffman_bits(np.array([7, 0])) == 7


@pytest.mark.timing
@pytest.mark.parametrize("weighted", [False, True])
def test_a_layer_of_4096_by_4096_takes_less_than_two_seconds(weighted):
    import time

    rng = np.random.default_rng(0)
    points = rng.standard_normal((4096, 4096)).astype(np.float32)
    weights = np.broadcast_to(rng.random(4096), points.shape) if weighted else None
    began = time.perf_counter()
    clustered(points, weights, 16, 0)
    assert time.perf_counter() - began < 2.0
