import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from pumice.quantize.parameters import QuantParams, affine, symmetric_per_channel

ENDS = st.floats(-1e6, 1e6, width=32)
TYPES = st.sampled_from([np.uint8, np.int8])
VALUES = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e5, 1e5, width=32))
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-9, 9, width=32)
)


def steps(params):
    return float(params.scale) * (1 + 1e-4)  # the scale itself is rounded to float32


@given(ENDS, ENDS, TYPES, st.booleans())
def test_zero_is_exact(one, other, dtype, symmetric):
    params = affine(min(one, other), max(one, other), dtype, symmetric=symmetric)
    assert params.round_trip(np.zeros(1, np.float32)) == 0.0


@given(VALUES, TYPES, st.booleans())
def test_inside_the_range_the_error_is_at_most_half_a_step(values, dtype, symmetric):
    params = affine(values.min(), values.max(), dtype, symmetric=symmetric)
    inside = np.clip(values, *params.range)
    assert np.abs(params.round_trip(inside) - inside).max() <= steps(params) / 2 + 1e-6 * np.abs(values).max()


@given(VALUES, TYPES, st.booleans())
def test_the_range_covers_the_values(values, dtype, symmetric):
    params = affine(values.min(), values.max(), dtype, symmetric=symmetric)
    low, high = params.range
    assert low <= min(values.min(), 0) + steps(params) / 2
    assert high >= max(values.max(), 0) - steps(params) / 2


@given(VALUES, TYPES)
def test_what_lies_outside_saturates(values, dtype):
    params = affine(-1.0, 1.0, dtype)
    low, high = params.limits
    assert params.quantize(values).min() >= low
    assert (params.quantize(values[values > 1.1]) == high).all()
    assert (params.quantize(values[values < -1.1]) == low).all()


def test_infinities_saturate():
    params = affine(-1e-20, 1e-20, np.uint8)
    assert params.quantize(np.array([np.inf, -np.inf, 3e38], np.float32)).tolist() == [255, 0, 255]


def test_halves_are_rounded_to_the_even_neighbour():
    params = QuantParams(np.array(1.0, np.float32), np.array(0, np.int8))
    assert params.quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


@given(VALUES)
def test_signed_symmetric_maps_x_and_minus_x_alike(values):
    params = affine(values.min(), values.max(), np.int8, symmetric=True)
    assert params.zero_point == 0
    np.testing.assert_array_equal(params.quantize(-values), -params.quantize(values))


def test_unsigned_symmetric_has_its_zero_in_the_middle():
    params = affine(-1.0, 3.0, np.uint8, symmetric=True)
    assert params.zero_point == 128
    assert params.range[1] == pytest.approx(3.0)


@given(MATRICES, st.sampled_from([0, 1]))
def test_channels_are_quantized_independently(weights, axis):
    together = symmetric_per_channel(weights, axis)
    for channel in range(weights.shape[axis]):
        alone = symmetric_per_channel(weights.take(channel, axis), None)
        assert together.scale[channel] == alone.scale
        np.testing.assert_array_equal(
            together.quantize(weights).take(channel, axis), alone.quantize(weights.take(channel, axis))
        )


@given(MATRICES)
def test_the_largest_weight_of_a_channel_takes_the_largest_integer(weights):
    params = symmetric_per_channel(weights, 0)
    largest = np.abs(params.quantize(weights).astype(int)).max(axis=1)
    assert ((largest == 127) | (np.abs(weights).max(axis=1) < 1e-29)).all()


@given(MATRICES)
def test_seven_bits_leave_room_for_two_products_in_sixteen(weights):
    integers = symmetric_per_channel(weights, 0, bits=7).quantize(weights).astype(int)
    assert 2 * 255 * np.abs(integers).max() <= 32767


def test_a_channel_of_zeros_has_an_ordinary_scale():
    params = symmetric_per_channel(np.zeros((2, 3), np.float32), 0)
    assert params.scale.tolist() == [1.0, 1.0]


def test_a_tensor_without_elements_has_parameters():
    assert symmetric_per_channel(np.zeros((0, 3), np.float32), None).scale == 1.0
    assert affine(0.0, 0.0, np.uint8).scale == 1.0
