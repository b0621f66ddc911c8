import tracemalloc

import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from pumice.quantize.statistics import BINS, ChannelStatistics, Statistics

SAMPLES = st.lists(arrays.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=6)


def seen(samples, statistics=None):
    statistics = statistics or Statistics()
    for sample in samples:
        statistics.update(sample)
    return statistics


@settings(deadline=None)  # the first one finds the kernels installed
@given(SAMPLES, st.randoms())
def test_neither_the_order_nor_the_batching_matters(samples, random):
    shuffled = random.sample(samples, len(samples))
    one, other = seen(samples), seen(shuffled)
    whole = Statistics()
    whole.update(np.concatenate(samples))
    for found in (other, whole):
        np.testing.assert_array_equal(found.counts, one.counts)
        assert (found.low, found.high) == (one.low, one.high)


@given(SAMPLES)
def test_every_value_is_counted_once_and_extremes_are_exact(samples):
    statistics = seen(samples)
    everything = np.concatenate(samples)
    centres, counts = statistics.histogram()
    assert counts.sum() == everything.size
    assert (statistics.low, statistics.high) == (everything.min(), everything.max())
    assert (np.diff(centres) >= 0).all()


@given(SAMPLES)
def test_a_bin_lies_within_one_percent_of_its_values(samples):
    everything = np.sort(np.concatenate(samples).reshape(-1))
    centres, counts = seen(samples).histogram()
    restored = np.repeat(centres, counts.astype(int))
    assert (np.abs(restored - everything) <= 0.01 * np.abs(everything) + 1e-30).all()


@given(SAMPLES, SAMPLES)
def test_merging_is_seeing_both(ours, theirs):
    merged = seen(ours)
    merged.merge(seen(theirs))
    both = seen([*ours, *theirs])
    np.testing.assert_array_equal(merged.counts, both.counts)
    assert (merged.low, merged.high, merged.samples) == (both.low, both.high, both.samples)


def test_merging_takes_the_wider_average():
    one, other = seen([np.array([-1.0, 1.0])]), seen([np.array([0.0, 3.0])])
    one.merge(other)
    one.merge(Statistics())
    assert (one.average_low, one.average_high) == (-1.0, 3.0)


def test_the_average_follows_the_samples():
    statistics = seen([np.array([0.0, 1.0]), np.array([0.0, 11.0])])
    np.testing.assert_allclose([statistics.average_low, statistics.average_high], [0.0, 0.9 * 1.0 + 0.1 * 11.0])


def test_samples_without_elements_are_not_seen():
    statistics, channels = Statistics(), ChannelStatistics()
    statistics.update(np.zeros((0, 3), np.float32))
    channels.update(np.zeros((0, 3, 2), np.float32))
    assert not statistics.seen
    assert channels.channels == 0


def test_memory_does_not_grow_with_the_number_of_samples():
    statistics, channels, rng = Statistics(), ChannelStatistics(), np.random.default_rng(0)
    statistics.update(np.ones((1, 4, 8), np.float32))
    tracemalloc.start()
    for _ in range(500):
        sample = rng.standard_normal((1, 4, 8)).astype(np.float32)
        statistics.update(sample)
        channels.update(sample)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 18
    assert peak < 8 * BINS * 4


@given(arrays.arrays(np.float32, (5, 3, 4), elements=st.floats(-10, 10, width=32)), st.sampled_from([1, -1]))
def test_channels_have_their_own_extremes_and_energy(array, axis):
    channels = ChannelStatistics(axis=axis)
    for sample in array:
        channels.update(sample[None])
    others = tuple(d for d in range(3) if d != axis % 3)
    np.testing.assert_array_equal(channels.low, array.min(axis=others))
    np.testing.assert_array_equal(channels.high, array.max(axis=others))
    np.testing.assert_allclose(channels.mean_square, (array.astype(np.float64) ** 2).mean(axis=others))


def test_an_axis_whose_length_changes_has_no_channels():
    channels = ChannelStatistics()
    arrays_seen = [np.arange(n * 2, dtype=np.float32).reshape(1, n, 2) for n in (3, 5, 3)]
    for array in arrays_seen:
        channels.update(array)
    everything = np.concatenate([a.reshape(-1) for a in arrays_seen]).astype(np.float64)
    assert channels.channels == 1
    assert (channels.low[0], channels.high[0]) == (0.0, 9.0)
    np.testing.assert_allclose(channels.mean_square, np.mean(everything**2))


def test_what_is_not_finite_is_noticed():
    for value in (np.nan, np.inf):
        channels = ChannelStatistics()
        channels.update(np.array([[[1.0, value]]], np.float32))
        assert not channels.finite
