"""Functions of rows and elements against float64 NumPy, for every type, at odd sizes and out of alignment."""

import cupy
import ml_dtypes
import numpy as np
import pytest
from scipy.special import erf

from pumice_cuda import rows

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CLOSE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SHAPES = [(3, 1), (7, 5), (5, 128), (4, 768), (3, 1001), (2, 8192), (2, 3, 4099), (2, 33_000), (1, 70_003)]
types = pytest.mark.parametrize("dtype", TYPES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def given(rng, shape, dtype, scale=1.0):
    """The same numbers as CuPy's array and in float64."""
    host = (rng.standard_normal(shape) * scale).astype(TYPES[dtype])
    return cupy.asarray(host), host.astype(np.float64)


def close(found, reference, dtype, slack=1.0):
    assert found.dtype.name == dtype
    have = cupy.asnumpy(found).astype(np.float64)
    assert have.shape == reference.shape
    bound = slack * CLOSE[dtype] * (np.abs(reference) + np.abs(reference).max(initial=0) * 0.1)
    assert (np.abs(have - reference) <= bound).all()


@types
@shapes
@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_is_that_of_float64(rng, shape, dtype, logarithm):
    x, wide = given(rng, shape, dtype, 4)
    shifted = wide - wide.max(-1, keepdims=True)
    sums = np.exp(shifted).sum(-1, keepdims=True)
    close(rows.softmax(x, logarithm=logarithm), shifted - np.log(sums) if logarithm else np.exp(shifted) / sums, dtype)


@types
@shapes
@pytest.mark.parametrize("rms", [False, True])
def test_normalisation_is_that_of_float64(rng, shape, dtype, rms):
    x, wide = given(rng, shape, dtype)
    scale, wide_scale = given(rng, shape[-1:], dtype)
    bias, wide_bias = given(rng, shape[-1:], dtype)
    y, mean, inverse, _ = rows.layer_norm(x, scale, bias, 1e-3, rms=rms, statistics=True)
    centre = 0 if rms else wide.mean(-1, keepdims=True)
    factor = 1 / np.sqrt(np.square(wide - centre).mean(-1, keepdims=True) + 1e-3)
    close(y, (wide - centre) * factor * wide_scale + wide_bias, dtype)
    close(inverse, factor.reshape(-1), "float32")
    np.testing.assert_allclose(cupy.asnumpy(mean), np.broadcast_to(centre, factor.shape).reshape(-1), atol=1e-5)


@types
def test_normalisation_adds_the_residual_and_its_bias_first(rng, dtype):
    (x, wide), (skip, wide_skip) = (given(rng, (9, 200), dtype) for _ in range(2))
    (scale, wide_scale), (added, wide_added) = (given(rng, (200,), dtype) for _ in range(2))
    y, _, _, total = rows.layer_norm(x, scale, skip=skip, skip_bias=added, total=True)
    v = wide + wide_skip + wide_added
    close(total, v, dtype)
    close(y, (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5) * wide_scale, dtype)


@types
@pytest.mark.parametrize("size", [1, 7, 4096, 10_001])
def test_gelu_and_silu_are_those_of_float64(rng, dtype, size):
    x, wide = given(rng, size, dtype, 3)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    close(rows.map_elements("gelu", x), 0.5 * wide * (1 + erf(wide / np.sqrt(2))), dtype)
    close(rows.map_elements("gelu_tanh", x), 0.5 * wide * (1 + np.tanh(inner)), dtype)
    close(rows.map_elements("silu", x), wide / (1 + np.exp(-wide)), dtype)


@types
def test_what_lies_out_of_alignment_is_read_in_place(rng, dtype):
    whole, wide = given(rng, 4097, dtype)
    x, wide = whole[1:], wide[1:]
    close(rows.map_elements("silu", x), wide / (1 + np.exp(-wide)), dtype)
    table = x.reshape(4, 1024)
    weights = np.exp(wide.reshape(4, 1024))
    close(rows.softmax(table), weights / weights.sum(-1, keepdims=True), dtype)


REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min,
    "sum_square": lambda x, axis, keepdims: np.sum(np.square(x), axis, keepdims=keepdims),
}  # fmt: skip


@types
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 7), [1]), ((5, 7), [0]), ((3, 4, 5, 6), [0, 2]), ((3, 4, 5, 6), [1, 2]), ((1, 300_001), [1]),
        ((90_001, 3), [0]), ((40, 2000), [-1]), ((6, 5, 4), [0, 1, 2]), ((70, 65, 33), [0, 2]),
        ((3000, 264), [0]), ((2, 700, 1032), [1]), ((3, 40, 72), [1]), ((9, 20_008), [1]), ((2, 90_008), [-1]),
    ],
    ids=str,
)  # fmt: skip
def test_reductions_over_any_axes_are_those_of_float64(rng, reduction, dtype, shape, axes):
    x, wide = given(rng, shape, dtype)
    wide, x = wide + 1.5, cupy.asarray((wide + 1.5).astype(TYPES[dtype]))
    wide = cupy.asnumpy(x).astype(np.float64)
    if dtype == "float16" and np.prod(shape) > 60_000:
        x, wide = x * np.float16(2**-6), wide * 2**-6
    for keepdims in (True, False):
        have = rows.reduce(reduction, x, axes, keepdims=keepdims)
        close(have, np.asarray(REDUCTIONS[reduction](wide, axis=tuple(axes), keepdims=keepdims)), dtype)


def test_a_maximum_is_nan_where_there_is_one(rng):
    x, _ = given(rng, (4, 5000), "float32")
    x[2, 77] = np.nan
    found = cupy.asnumpy(rows.reduce("max", x, [1], keepdims=False))
    assert np.isnan(found).tolist() == [False, False, True, False]


def test_sums_are_the_same_every_time(rng):
    x, _ = given(rng, (1, 1_000_003), "float32")
    assert len({float(rows.reduce("sum", x, [1])[0, 0]) for _ in range(5)}) == 1


def test_integers_are_refused():
    with pytest.raises(ValueError, match="of type int32"):
        rows.softmax(cupy.zeros((2, 2), np.int32))
