"""Functions of elements and rows at every level, against float64 and against the scalar level."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import special

from pumice_cpu import native, rows
from pumice_cpu.native import NativeError

LEVELS = ("scalar", "avx2", "avx512", "neon")
NUMBER = r"-?\d\.\d+(?:e-?\d+)?(?=f)"
TILE_LEVELS = ("scalar", "avx512")
COUNTS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 1000, 40001]
counts = pytest.mark.parametrize("count", COUNTS)


def ulps(have, exact):
    """Distance in units in the last place of float32 at the exact value; denormals have that of the smallest normal."""
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(np.where(exact == 0, 1, exact)))), -126)
        distance = np.abs(have.astype(np.float64) - exact) / np.exp2(exponent - 23)
        overflow = np.abs(exact) > np.finfo(np.float32).max
    return np.where(overflow, np.where(np.isinf(have), 0, distance), distance)


def logistic(x):
    return np.where(
        x < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-np.maximum(x, 0)))
    )


def gelu(x):
    return x * special.ndtr(x)


FUNCTIONS = {
    "exp": (np.exp, 1, ()), "log": (np.log, 1, ()), "tanh": (np.tanh, 2, ()), "sigmoid": (logistic, 3, ()),
    "erf": (special.erf, 1, ()), "gelu": (gelu, 4, ()), "silu": (lambda x: x * logistic(x), 4, (1.0,)),
    "sqrt": (np.sqrt, 0.5, ()), "reciprocal": (lambda x: 1 / x, 0.5, ()),
}  # fmt: skip


TINY = {"gelu": (9e-12, 4e-14)}
"""Results that are smaller than the first number may be wrong by the second."""


@pytest.fixture(scope="module")
def every_magnitude():
    """All finite float32 in steps of 4999, both signs, and the neighbourhood of zero more densely."""
    patterns = np.arange(0, 1 << 32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate(
        [patterns, np.linspace(-110, 110, 100_001, dtype=np.float32), np.linspace(-6, 6, 100_001, dtype=np.float32)]
    )
    return x[np.isfinite(x)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_keep_the_stated_error_over_all_floats(level, gave, every_magnitude, name):
    function, bound, parameters = FUNCTIONS[name]
    x = every_magnitude[every_magnitude > 0] if name in {"log", "sqrt"} else every_magnitude[every_magnitude != 0]
    with np.errstate(all="ignore"):
        exact = function(x.astype(np.float64))
    have = rows.map_elements(name, x, parameters)
    least, error = TINY.get(name, (0, 0))
    tiny = np.abs(exact) < least
    assert ulps(have, exact)[~tiny].max() <= bound
    assert np.abs(have[tiny] - exact[tiny]).max(initial=0) <= error
    gave("rows_map", *LEVELS)


def test_the_tables_are_what_their_script_prints():
    folder = Path(__file__).parents[1] / "csrc" / "rows"
    printed = subprocess.run([sys.executable, folder / "pieces.py"], capture_output=True, text=True, check=True).stdout
    have, want = ([float(n) for n in re.findall(NUMBER, text)] for text in (printed, (folder / "pieces.h").read_text()))
    np.testing.assert_allclose(have, want, rtol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "erf"])
def test_functions_with_limits_never_pass_them(level, every_magnitude, name):
    assert np.abs(rows.map_elements(name, every_magnitude)).max() == 1


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid", "erf", "gelu", "relu", "sqrt"])
def test_not_a_number_stays_and_infinities_give_the_limits(level, name):
    limits = {
        "exp": (0, np.inf), "log": (np.nan, np.inf), "tanh": (-1, 1), "sigmoid": (0, 1), "erf": (-1, 1),
        "gelu": (0, np.inf), "relu": (0, np.inf), "sqrt": (np.nan, np.inf),
    }  # fmt: skip
    have = rows.map_elements(name, np.array([np.nan, -np.inf, np.inf], np.float32))
    np.testing.assert_allclose(have, [np.nan, *limits[name]], atol=1e-30, rtol=2e-7)


def test_logarithms_of_zero_and_of_negatives(level):
    np.testing.assert_array_equal(
        rows.map_elements("log", np.array([0, -0.0, -1], np.float32)), [-np.inf, -np.inf, np.nan]
    )


@counts
def test_maps_touch_every_element_and_nothing_beyond(level, threads, rng, misaligned, count):
    x = misaligned(rng.standard_normal(count).astype(np.float32), 3)
    room = np.full(count + 64, 7, np.float32)
    out = room[5 : 5 + count]
    assert rows.map_elements("relu", x, out=out, threads=threads) is out
    np.testing.assert_array_equal(out, np.maximum(x, 0))
    assert (room[:5] == 7).all()
    assert (room[5 + count :] == 7).all()


PIECEWISE = {
    "relu": ((), lambda x: np.maximum(x, 0)),
    "clip": ((-0.5, 0.25), lambda x: np.clip(x, np.float32(-0.5), np.float32(0.25))),
    "leaky_relu": ((0.1,), lambda x: np.where(x < 0, np.float32(0.1) * x, x)),
    "affine": ((2.0, 3.0, 0.5), lambda x: (x - np.float32(0.5)) * np.float32(2) + np.float32(3)),
    "hard_sigmoid": ((0.2, 0.5), lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1)),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_linear_maps_are_exact(level, rng, name):
    parameters, function = PIECEWISE[name]
    x = rng.standard_normal((7, 41)).astype(np.float32)
    np.testing.assert_array_equal(rows.map_elements(name, x, parameters), function(x))


def test_an_output_that_overlaps_its_operand_is_refused():
    x = np.zeros(100, np.float32)
    with pytest.raises(NativeError, match="overwrite an operand"):
        rows.map_elements("relu", x[:50], out=x[20:70])


# --- two operands -----------------------------------------------------------------------------------------------------

BROADCASTS = [
    ((5, 7), (5, 7)), ((5, 7), (7,)), ((5, 7), (5, 1)), ((1, 7), (5, 1)), ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 4, 5), (2, 1, 4, 1)), ((5, 7), ()), ((), (5, 7)), ((3, 1, 5), (4, 1)), ((1, 1), (3, 33)), ((0, 3), (3,)),
    ((2, 1, 3, 5), (1, 4, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_arithmetic_broadcasts_as_numpy_does(level, gave, threads, rng, shapes, operation):
    a, b = (rng.uniform(0.5, 2, shape).astype(np.float32) for shape in shapes)
    expected = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation](a, b)
    np.testing.assert_array_equal(rows.binary(operation, a, b, threads=threads), expected)
    if expected.size:
        gave("rows_binary", *LEVELS)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arithmetic_of_any_shapes_that_broadcast(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=0, max_size=4))
    parts = [
        [data.draw(st.sampled_from([1, extent])) for extent in shape[data.draw(st.integers(0, len(shape))) :]]
        for _ in range(2)
    ]
    a, b = (np.arange(np.prod(part, dtype=int), dtype=np.float32).reshape(part) for part in parts)
    np.testing.assert_array_equal(rows.binary("sub", a, b), a - b)


def test_long_equal_operands_are_shared_out(level, threads, rng):
    a, b = (rng.standard_normal(200_003).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(rows.binary("add", a, b, threads=threads), a + b)


# --- rows -------------------------------------------------------------------------------------------------------------


@counts
@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_agrees_with_float64(level, gave, threads, rng, count, logarithm):
    x = (5 * rng.standard_normal((3, count))).astype(np.float32)
    function = special.log_softmax if logarithm else special.softmax
    have = rows.softmax(x, logarithm=logarithm, threads=threads)
    np.testing.assert_allclose(
        have, function(x.astype(np.float64), axis=1), rtol=2e-6, atol=3e-6 if logarithm else 1e-9
    )
    gave("rows_softmax", *LEVELS)


def test_softmax_of_large_values_and_of_nan(level):
    x = np.array([[1e4, 1e4, -1e4], [np.nan, 0, 0], [-np.inf, 0, -np.inf]], np.float32)
    np.testing.assert_array_equal(rows.softmax(x), [[0.5, 0.5, 0], [np.nan] * 3, [0, 1, 0]])


@counts
@pytest.mark.parametrize("rms", [False, True])
def test_layer_norm_agrees_with_float64(level, gave, threads, rng, count, rms):
    x = (rng.standard_normal((3, count)) + 10).astype(np.float32)
    scale, bias = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    y, mean, inverse = rows.layer_norm(x, scale, bias, 1e-5, rms=rms, statistics=True, threads=threads)
    wide = x.astype(np.float64)
    centre = 0 if rms else wide.mean(1, keepdims=True)
    factor = 1 / np.sqrt(np.square(wide - centre).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, (wide - centre) * factor * scale + bias, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(inverse, factor[:, 0], rtol=2e-5)
    np.testing.assert_allclose(mean, np.zeros(3) if rms else centre[:, 0], rtol=1e-6)
    gave("rows_layer_norm", *LEVELS)


def test_layer_norm_of_a_constant_row_is_its_bias(level):
    x, scale, bias = np.full((2, 50), 3e4, np.float32), np.ones(50, np.float32), np.arange(50, dtype=np.float32)
    np.testing.assert_array_equal(rows.layer_norm(x, scale, bias)[0], [bias, bias])


def test_batch_norm_takes_channels_from_axis_one(level, threads, rng):
    x = rng.standard_normal((2, 5, 3, 7)).astype(np.float32)
    scale, bias, mean, var = (rng.uniform(0.5, 1, 5).astype(np.float32) for _ in range(4))
    have = rows.batch_norm(x, scale, bias, mean, var, 1e-3, threads=threads)
    column = [v[:, None, None].astype(np.float64) for v in (scale, bias, mean, var)]
    np.testing.assert_allclose(
        have, (x - column[2]) / np.sqrt(column[3] + 1e-3) * column[0] + column[1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "sum_square"])
def test_reductions_over_neighbouring_axes(level, threads, rng, axes, name):
    x = rng.standard_normal((5, 67, 35)).astype(np.float32)
    exact = {
        "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min,
        "sum_square": lambda v, **k: np.square(v).sum(**k),
    }[name](x.astype(np.float64), axis=axes, keepdims=True)  # fmt: skip
    have = rows.reduce(name, x, axes, threads=threads)
    np.testing.assert_allclose(have, exact, rtol=1e-5, atol=2e-4 if "sum" in name else 1e-6)


@pytest.mark.parametrize("at", [0, 17, 40])
@pytest.mark.parametrize("axis", [0, 1])
def test_extremes_of_nan_are_nan(level, axis, at):
    x = np.zeros((41, 41), np.float32)
    x[at, at] = np.nan
    for name in ("max", "min"):
        np.testing.assert_array_equal(np.isnan(rows.reduce(name, x, (axis,), keepdims=False)), np.arange(41) == at)


PERMUTATIONS = [((5, 7), (1, 0)), ((33, 50), (1, 0)), ((2, 3, 4, 5), (0, 2, 1, 3)), ((2, 20, 3, 40), (0, 2, 3, 1)),
                ((2, 3, 4), (2, 1, 0)), ((1, 6, 1, 4), (3, 2, 1, 0)), ((4, 3), (0, 1)), ((), ()), ((0, 4), (1, 0)),
                ((2, 17, 35), (0, 2, 1)), ((3, 2, 2, 3, 2, 4), (5, 3, 1, 4, 2, 0))]  # fmt: skip


@pytest.mark.parametrize("case", PERMUTATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "int64"])
def test_transposition_moves_every_element(level, gave, threads, case, dtype):
    shape, axes = case
    x = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    np.testing.assert_array_equal(rows.transpose(x, axes, threads=threads), x.transpose(axes))
    if x.size:
        gave("rows_transpose_tile", *TILE_LEVELS)


def test_transposition_reads_views_in_place(level):
    x = np.arange(60 * 80, dtype=np.float32).reshape(60, 80)[::2, 3:50]
    np.testing.assert_array_equal(rows.transpose(x, (1, 0)), x.T)


# --- quantization -----------------------------------------------------------------------------------------------------


def quantized(x, scale, zero, low, high):
    return np.clip(np.rint(x / np.float32(scale)).astype(np.float64) + zero, low, high)


@pytest.mark.parametrize("scale", [0.02, 1.0, 0.1, 3e-5, 7e10, 1e-38, 2e-33, 0.0039215689])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantization_rounds_the_exact_quotient_half_to_even(level, gave, threads, rng, scale, dtype):
    limits = np.iinfo(dtype)
    halves = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    near = np.concatenate([np.nextafter(halves, np.float32(s)) for s in (-np.inf, np.inf)])
    wild = (rng.standard_normal(20_001) * 100 * scale).astype(np.float32)
    x = np.concatenate([halves, near, wild, np.array([np.inf, -np.inf, 0, -0.0, 3e38, -3e38], np.float32)])
    zero = 128 if dtype == "uint8" else -3
    have = rows.quantize(x, scale, zero, dtype, threads=threads)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(have, quantized(x, scale, zero, limits.min, limits.max))
    gave("rows_quantize", *LEVELS)


def test_quantization_goes_by_channel_and_takes_tighter_bounds(level, rng):
    x = rng.standard_normal((3, 5, 37)).astype(np.float32)
    scale, zero = rng.uniform(0.01, 0.1, 5).astype(np.float32), np.arange(5, dtype=np.int32)
    expected = quantized(x, scale[:, None], zero[:, None], 2, 200)
    np.testing.assert_array_equal(rows.quantize(x, scale, zero, axis=1, low=2, high=200), expected)


def test_relu_before_quantization_is_a_lower_bound(level, rng):
    x = rng.standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(rows.quantize(x, 0.02, 10, low=10), rows.quantize(np.maximum(x, 0), 0.02, 10))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_dequantization_is_exact(level, gave, threads, rng, dtype):
    q = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (4, 6, 50)).astype(dtype)
    scale, zero = rng.uniform(0.01, 0.1, 6).astype(np.float32), np.arange(6)
    expected = (q.astype(np.float32) - zero[:, None].astype(np.float32)) * scale[:, None]
    np.testing.assert_array_equal(rows.dequantize(q, scale, zero, axis=1, threads=threads), expected)
    gave("rows_dequantize", *LEVELS)


# --- calibration and clustering ---------------------------------------------------------------------------------------


@counts
def test_the_range_holds_every_value(level, gave, threads, rng, count):
    x = rng.standard_normal(count).astype(np.float32)
    assert rows.value_range(x, threads=threads) == (x.min(), x.max())
    gave("rows_range", *LEVELS)


@pytest.mark.parametrize("at", [0, 50_000, 99_999])
def test_the_range_of_a_nan_is_nan(level, threads, at):
    x = np.zeros(100_000, np.float32)
    x[at] = np.nan
    assert np.isnan(rows.value_range(x, threads=threads)).all()


def test_histograms_count_bfloat16_bins(threads, rng):
    x = rng.standard_normal(1_200_001).astype(np.float32)
    expected = np.bincount(x.view(np.uint16)[1::2], minlength=rows.BINS)
    counts = rows.histogram(x, threads=threads)
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(rows.histogram(x, counts, threads=threads), 2 * expected)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("clusters", [1, 2, 16, 17])
def test_points_go_to_their_nearest_centroid(level, gave, threads, rng, width, clusters):
    points = rng.standard_normal((501, width)).astype(np.float32)
    centroids = rng.standard_normal((clusters, width)).astype(np.float32)
    distance = np.zeros((501, clusters), np.float32)
    for d in range(width):
        distance += np.square(points[:, None, d] - centroids[None, :, d])
    points, centroids = (v[:, 0] if width == 1 else v for v in (points, centroids))
    np.testing.assert_array_equal(rows.nearest(points, centroids, threads=threads), distance.argmin(1))
    gave("rows_nearest", *LEVELS)


def test_other_types_are_refused_in_a_sentence():
    with pytest.raises(NativeError, match=r"x is of type float64; this kernel takes float32"):
        rows.map_elements("exp", np.zeros(3))


def test_all_levels_quantize_alike(rng):
    x = (rng.standard_normal(10_001) * 3).astype(np.float32)
    found = []
    for name in native.levels():
        with native.using_level(name):
            found.append(rows.quantize(x, 0.0123, 7))
    assert all((other == found[0]).all() for other in found)
