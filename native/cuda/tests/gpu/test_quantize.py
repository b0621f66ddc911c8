"""Quantization against core's NumPy code bit for bit, and gradients against its sums."""

import cupy
import ml_dtypes
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cuda import quantize

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
types = pytest.mark.parametrize("dtype", TYPES)
kinds = pytest.mark.parametrize("kind", [np.uint8, np.int8])
sizes = pytest.mark.parametrize("size", [1, 5, 4096, 16_384, 100_003])


def core(op, *arrays, **attributes):
    node = Node(op_type=op, attributes=attributes, opset=21)
    return core_table().resolve("", op, 21).forward(node, *arrays)


def core_gradient(op, inputs, outputs, grad, **attributes):
    node = Node(op_type=op, attributes=attributes, opset=21)
    return core_table().resolve("", op, 21).vjp(node, inputs, outputs, [grad], [True, True])


def same(found, reference):
    assert found.dtype == reference.dtype
    np.testing.assert_array_equal(cupy.asnumpy(found), reference)


@types
@kinds
@sizes
def test_one_scale_gives_the_integers_of_the_cpu(rng, dtype, kind, size):
    x = (rng.standard_normal(size) * 3).astype(TYPES[dtype])
    x[: size // 3] = (rng.integers(-600, 600, size // 3) * 0.01).astype(TYPES[dtype])  # halves, and beyond the range
    scale, zero = np.float32(0.02), kind(37)
    same(quantize.quantize(cupy.asarray(x), scale, zero, kind), core("QuantizeLinear", x, scale, zero)[0])


def test_quotients_are_rounded_as_a_division_does(rng):
    """Half a million neighbours of every half level of many scales."""
    for scale in np.float32(rng.uniform(0.5, 1, 40) * 2.0 ** rng.integers(-30, 30, 40)):
        levels = rng.integers(-130, 131, 12_000) + np.float32(0.5)
        x = np.nextafter(levels * scale, rng.choice([-np.inf, np.inf], 12_000).astype(np.float32), dtype=np.float32)
        x = np.concatenate([x, (levels * scale).astype(np.float32)])
        same(quantize.quantize(cupy.asarray(x), scale, None, np.int8), core("QuantizeLinear", x, scale, np.int8(0))[0])


@pytest.mark.parametrize("scale", [1e-38, 1e-42, 1e-20, 1.0, 1e20, 3e38])
def test_extremes_saturate(scale):
    x = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0, -0.0, 1e-38], np.float32)
    with np.errstate(over="ignore"):
        expected = core("QuantizeLinear", x, np.float32(scale), np.int8(-3))[0]
    same(quantize.quantize(cupy.asarray(x), np.float32(scale), np.int8(-3), np.int8), expected)


def test_relu_is_a_tighter_bound(rng):
    x = rng.standard_normal(70_001).astype(np.float32)
    expected = core("QuantizeLinear", np.maximum(x, 0), np.float32(0.03), np.uint8(9))[0]
    same(quantize.quantize(cupy.asarray(x), 0.03, np.uint8(9), low=9), expected)


AXES = [((6, 5, 7), 1), ((4, 33), 0), ((65, 9), -1), ((3, 16, 8, 8), 1), ((1000, 3), 1), ((2, 3, 4001), 1)]
axes = pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)


def parameters(rng, shape, axis, kind):
    limits = np.iinfo(kind)
    places = shape[axis]
    zero = rng.integers(limits.min // 2, limits.max // 2, places).astype(kind)
    return rng.uniform(0.01, 0.05, places).astype(np.float32), zero


@types
@kinds
@axes
def test_a_scale_for_each_place_gives_the_integers_of_the_cpu(rng, dtype, kind, shape, axis):
    x = (rng.standard_normal(shape) * 2).astype(TYPES[dtype])
    scale, zero = parameters(rng, shape, axis, kind)
    q = quantize.quantize(cupy.asarray(x), scale, zero, kind, axis=axis)
    same(q, core("QuantizeLinear", x, scale, zero, axis=axis)[0])


@types
@kinds
def test_dequantization_is_that_of_the_cpu(rng, dtype, kind):
    limits = np.iinfo(kind)
    for shape, axis in AXES:
        q = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
        scale, zero = parameters(rng, shape, axis, kind)
        expected = core("DequantizeLinear", q, scale, zero, axis=axis)[0].astype(TYPES[dtype])
        same(quantize.dequantize(cupy.asarray(q), scale, zero, axis=axis, dtype=TYPES[dtype]), expected)
    q = rng.integers(limits.min, limits.max + 1, 50_001).astype(kind)
    expected = core("DequantizeLinear", q, np.float32(0.1), kind(3))[0].astype(TYPES[dtype])
    same(quantize.dequantize(cupy.asarray(q), 0.1, kind(3), dtype=TYPES[dtype]), expected)


@sizes
@pytest.mark.parametrize("shift", [-9, 0, 2, 40])
def test_dynamic_scales_are_those_of_the_cpu(rng, size, shift):
    x = (rng.standard_normal(size) * 3 + shift).astype(np.float32)
    for have, expected in zip(
        quantize.dynamic_quantize(cupy.asarray(x)), core("DynamicQuantizeLinear", x), strict=True
    ):
        same(have, expected)


ROWS = [(1, 1), (3, 7), (5, 768), (4, 1003), (2, 3, 8192), (2, 40_000)]


@types
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_each_row_by_its_own_range(rng, dtype, shape):
    x = (rng.standard_normal(shape) * rng.uniform(0.1, 9, (*shape[:-1], 1)) + 1).astype(TYPES[dtype])
    q, scale, zero = quantize.dynamic_quantize_rows(cupy.asarray(x))
    rows = x.astype(np.float32).reshape(-1, shape[-1])
    for i, row in enumerate(rows):
        for have, expected in zip((q.reshape(rows.shape)[i], scale.reshape(-1)[i], zero.reshape(-1)[i]),
                                  core("DynamicQuantizeLinear", row), strict=True):  # fmt: skip
            same(have, expected)


@types
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_each_row_by_its_largest_magnitude(rng, dtype, shape):
    x = (rng.standard_normal(shape) * rng.uniform(0.1, 9, (*shape[:-1], 1))).astype(TYPES[dtype])
    x[0] = 0
    wide = x.astype(np.float32)
    most = np.abs(wide).max(-1, keepdims=True)
    q, scale = quantize.quantize_rows(cupy.asarray(x))
    with np.errstate(divide="ignore"):
        factor = np.where(most > 0, np.float32(127) / most, 0).astype(np.float32)
    same(scale, (most / np.float32(127))[..., 0])
    same(q, np.rint(wide * factor).astype(np.int8))


GRADIENT_SHAPES = [((50_001,), None), ((6, 5, 7), 1), ((9, 2000), 0), ((700, 9), 1), ((3, 16, 40, 40), 1)]


def operands(rng, shape, axis):
    x = (rng.standard_normal(shape) * 2).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    scale, zero = parameters(rng, shape, axis, np.int8) if axis is not None else (np.float32(0.02), np.int8(5))
    return x, dy, scale, zero


def sums_agree(found, reference, terms):
    bound = 2e-6 * np.abs(terms).sum() + 1e-6
    assert np.abs(cupy.asnumpy(found).reshape(-1) - np.asarray(reference).reshape(-1)).max() <= bound


@pytest.mark.parametrize(("shape", "axis"), GRADIENT_SHAPES, ids=str)
def test_gradients_are_straight_through_and_sum_over_their_scale(rng, shape, axis):
    x, dy, scale, zero = operands(rng, shape, axis)
    along = {"axis": 0 if axis is None else axis}
    q = core("QuantizeLinear", x, scale, zero, **along)[0]
    dq, ds_of_dequantize, _ = core_gradient("DequantizeLinear", (q, scale, zero), (None,), dy, **along)
    dx, ds_of_quantize, _ = core_gradient("QuantizeLinear", (x, scale, zero), (q,), dq, **along)
    device_x, device_q, device_dy = map(cupy.asarray, (x, q, dy))
    found_dq, found = quantize.dequantize_gradient(device_q, device_dy, scale, zero, axis=axis)
    np.testing.assert_allclose(cupy.asnumpy(found_dq), dq, rtol=1e-6)
    sums_agree(found, ds_of_dequantize, dy * 128)
    found_dx, found = quantize.quantize_gradient(device_x, found_dq, scale, zero, (-128, 127), axis=axis)
    np.testing.assert_allclose(cupy.asnumpy(found_dx), dx, rtol=1e-6)
    sums_agree(found, ds_of_quantize, dy * 128)
    both_dx, both = quantize.fake_quantize_gradient(device_x, device_dy, scale, zero, axis=axis)
    np.testing.assert_allclose(cupy.asnumpy(both_dx), dx, rtol=1e-5, atol=1e-7)
    sums_agree(both, ds_of_dequantize + ds_of_quantize, dy * 128)


@types
@pytest.mark.parametrize(("shape", "axis"), GRADIENT_SHAPES, ids=str)
def test_fake_quantization_is_quantization_and_back(rng, dtype, shape, axis):
    x, _, scale, zero = operands(rng, shape, axis)
    x = x.astype(TYPES[dtype])
    along = {"axis": 0 if axis is None else axis}
    q = core("QuantizeLinear", x, scale, zero, **along)[0]
    expected = core("DequantizeLinear", q, scale, zero, **along)[0].astype(TYPES[dtype])
    same(quantize.fake_quantize(cupy.asarray(x), scale, zero, axis=axis), expected)
