"""Scales of 8 bits: rounded up by little, over many octaves, and stable once rounded."""

import numpy as np
from hypothesis import given, strategies as st

from pumice.quantize.storage import narrow_scales


@given(st.lists(st.floats(-13.0, 0.0), min_size=1, max_size=40))
def test_scales_are_rounded_up_by_an_eighth_at_most_and_stay_so(octaves):
    scale = np.exp2(np.array(octaves)).reshape(1, -1, 1)
    multiples, unit = narrow_scales(scale)
    held = multiples.astype(np.float64) * float(unit)
    assert np.all(held >= 0.998 * scale)
    assert np.all(held <= 1.126 * scale)
    again, unit_again = narrow_scales(held)
    np.testing.assert_array_equal(again.view(np.uint8), multiples.view(np.uint8))
    assert unit_again == unit or np.isclose(unit_again, unit, rtol=1e-6)


def test_scales_below_all_octaves_take_the_least():
    multiples, unit = narrow_scales(np.array([1.0, 1e-30]).reshape(1, 2, 1))
    assert multiples.astype(np.float64).ravel()[1] * float(unit) == float(unit) * 2.0**-9
