import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from pumice.quantize.calibration import Calibrator
from pumice.quantize.parameters import affine
from pumice.quantize.statistics import Statistics

VALUES = arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-50, 50, width=32))


def statistics(values):
    found = Statistics()
    found.update(np.asarray(values, np.float32))
    return found


def long_tailed(seed=0, count=20_000):
    return np.random.default_rng(seed).standard_t(2.5, count).astype(np.float32)


def squared_error(values, span, symmetric=False):
    params = affine(*span, np.uint8, symmetric=symmetric)
    return np.sum((params.round_trip(values) - values) ** 2.0)


@given(VALUES)
def test_minmax_is_what_was_seen(values):
    assert Calibrator().range(statistics(values)) == (values.min(), values.max())


def test_nothing_seen_has_the_empty_range():
    for method in ("minmax", "moving-average", "percentile", "entropy", "mse"):
        assert Calibrator(method=method).range(Statistics()) == (0.0, 0.0)


@pytest.mark.parametrize("share", [99.9, 99.0, 95.0])
def test_percentiles_are_those_of_numpy(share):
    values = long_tailed(count=400_000)
    low, high = Calibrator(method="percentile", percentile=share).range(statistics(values))
    tail = (100 - share) / 2
    np.testing.assert_allclose([low, high], np.percentile(values, [tail, 100 - tail]), rtol=0.02)


def test_the_whole_is_the_hundredth_percentile():
    values = long_tailed()
    assert Calibrator(method="percentile", percentile=100.0).range(statistics(values)) == (values.min(), values.max())


@given(VALUES, st.floats(90.0, 100.0))
def test_a_percentile_keeps_zero_and_stays_inside_what_was_seen(values, share):
    low, high = Calibrator(method="percentile", percentile=share).range(statistics(values))
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.booleans())
def test_the_mse_range_is_no_worse_than_the_whole_one(seed, symmetric):
    values = long_tailed(seed, 3000)
    found = Calibrator(method="mse", symmetric=symmetric).range(statistics(values))
    assert squared_error(values, found, symmetric) <= 1.05 * squared_error(
        values, (values.min(), values.max()), symmetric
    )


def test_mse_cuts_a_lonely_outlier():
    values = np.append(np.random.default_rng(0).uniform(-1, 1, 200_000), 30.0).astype(np.float32)
    low, high = Calibrator(method="mse").range(statistics(values))
    assert high < 25.0
    assert low == pytest.approx(-1.0, abs=0.03)


def test_entropy_cuts_long_tails_and_keeps_short_ones():
    tails, box = long_tailed(), np.random.default_rng(0).uniform(-1, 1, 20_000).astype(np.float32)
    low, high = Calibrator(method="entropy").range(statistics(tails))
    assert tails.min() < low < 0 < high < tails.max()
    assert np.mean((tails >= low) & (tails <= high)) > 0.97
    low, high = Calibrator(method="entropy").range(statistics(box))
    assert high - low > 1.8


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_symmetric_ranges_are_symmetric(method):
    low, high = Calibrator(method=method, symmetric=True).range(statistics(np.abs(long_tailed())))
    assert low == -high


@settings(max_examples=50)
@given(VALUES, st.sampled_from(["minmax", "moving-average", "percentile", "entropy", "mse"]), st.booleans())
def test_every_method_gives_finite_ordered_ends(values, method, symmetric):
    low, high = Calibrator(method=method, symmetric=symmetric).range(statistics(values))
    assert np.isfinite([low, high]).all()
    assert low <= high


def test_values_that_are_all_the_same_have_a_range():
    for method in ("percentile", "entropy", "mse"):
        low, high = Calibrator(method=method).range(statistics(np.full(10, 3.0)))
        assert low == 0.0
        assert 2.0 <= high <= 3.02
