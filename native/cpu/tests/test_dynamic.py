"""Products with rows quantized on the way, against the same arithmetic written out in NumPy."""

import numpy as np
import pytest

from pumice.ops.quantize import dynamic_parameters, quantize
from pumice_cpu import dynamic
from pumice_cpu.gemm import pack
from pumice_cpu.native import NativeError

ROW_LEVELS = ("scalar", "avx2", "avx512", "neon")
SIZES = [(1, 1, 1), (3, 17, 5), (5, 64, 33), (33, 100, 48), (2, 1000, 7), (0, 4, 3)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def operands(rng, size):
    m, k, n = size
    a = rng.standard_normal((m, k)).astype(np.float32) * rng.uniform(0.1, 10, (m, 1)).astype(np.float32)
    return a, rng.integers(-128, 128, (k, n)).astype(np.int8), rng.uniform(0.01, 0.1, n).astype(np.float32)


@sizes
def test_each_row_has_its_own_scale(level, gave, threads, rng, size):
    a, w, scale = operands(rng, size)
    most = np.abs(a).max(1, keepdims=True)
    sums = np.rint(a * (np.float32(127) / most)).astype(np.int64) @ w.astype(np.int64)
    expected = sums.astype(np.float32) * scale * (most / np.float32(127))
    np.testing.assert_array_equal(dynamic.matmul(a, pack(w, "integer"), scale, threads=threads), expected)
    gave("lowbit_quantize_row", *ROW_LEVELS)


@sizes
def test_one_scale_for_the_matrix_is_that_of_onnx(level, gave, threads, rng, size):
    a, w, scale = operands(rng, size)
    zero = rng.integers(-5, 5, w.shape[1]).astype(np.int32)
    a_scale, a_zero = dynamic_parameters(a) if a.size else (np.float32(1), np.uint8(0))
    q = quantize(a, a_scale, a_zero, np.dtype(np.uint8))
    sums = (q.astype(np.int64) - int(a_zero)) @ (w.astype(np.int64) - zero)
    have = dynamic.matmul(a, pack(w, "integer"), scale, per_row=False, b_zero=zero, threads=threads)
    np.testing.assert_array_equal(have, sums.astype(np.float32) * (a_scale * scale))
    gave("rows_quantize", *ROW_LEVELS)


def test_bias_and_activation_follow(level, rng):
    a, w, scale = operands(rng, (4, 50, 20))
    bias, packed = rng.standard_normal(20).astype(np.float32), pack(w, "integer")
    plain = dynamic.matmul(a, packed, scale) + bias
    np.testing.assert_array_equal(dynamic.matmul(a, packed, scale, bias), plain)
    np.testing.assert_allclose(
        dynamic.matmul(a, packed, scale, bias, activation="tanh"), np.tanh(plain), rtol=1e-5, atol=1e-6
    )


def test_a_row_of_zeros_gives_the_bias(level, rng):
    _, w, scale = operands(rng, (1, 30, 4))
    have = dynamic.matmul(np.zeros((2, 30), np.float32), pack(w, "integer"), scale, np.arange(4))
    np.testing.assert_array_equal(have, [np.arange(4)] * 2)


def test_other_shapes_are_refused(rng):
    a, w, scale = operands(rng, (3, 17, 5))
    with pytest.raises(NativeError, match=r"it must be float32 \(\.\.\., 17\)"):
        dynamic.matmul(a[:, :9], pack(w, "integer"), scale)
    with pytest.raises(NativeError, match="3 scales do not fit 5 columns"):
        dynamic.matmul(a, pack(w, "integer"), scale[:3])
