"""Scales of 8 bits: rounded up by less than a unit, and stable once rounded."""

import numpy as np
from hypothesis import given, strategies as st

from pumice.quantize.storage import scale_levels


@given(st.lists(st.floats(-10.0, 0.0), min_size=1, max_size=40))
def test_scales_are_rounded_up_to_a_level_and_stay_there(octaves):
    scale = np.exp2(np.array(octaves)).reshape(1, -1, 1)
    levels, unit = scale_levels(scale)
    held = levels * float(unit)
    assert np.all(held >= scale - 0.002 * unit)
    assert np.all(held <= scale + 1.001 * unit)
    np.testing.assert_array_equal(scale_levels(held)[0], levels)


def test_no_scale_is_lost():
    levels, _ = scale_levels(np.array([1.0, 1e-30]).reshape(1, 2, 1))
    assert levels.ravel().tolist() == [255, 1]
