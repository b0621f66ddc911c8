"""4-bit products at every level against float64, and integer sums against the scalar level bit for bit."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pumice_cpu import lowbit, native
from pumice_cpu.native import NativeError

S8_LEVELS = ("scalar", "avx2", "avx512_vnni", "amx", "neon", "neon_dotprod")
F32_LEVELS = ("scalar", "avx2", "avx512", "neon")
ROW_LEVELS = ("scalar", "avx2", "avx512", "neon")
CASES = [(128, 4, 1, 128), (300, 7, 3, 128), (300, 7, 3, None), (64, 1, 1, None), (1000, 33, 9, 32), (1000, 33, 2, 64),
         (1024, 35, 17, 256), (257, 18, 70, None), (640, 16, 5, 128), (1, 1, 1, None), (129, 17, 4, 128),
         (520, 37, 50, 128)]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=str)
tables = pytest.mark.parametrize("per", ["matrix", "column", "group"])


def codebook(rng, k, n, group, per, kind):
    groups = -(-k // (group or k))
    shape = {"matrix": (16,), "column": (n, 16), "group": (n, groups, 16)}[per]
    table = (
        rng.integers(-128, 128, shape).astype(np.int8)
        if kind == "int8"
        else rng.standard_normal(shape).astype(np.float32)
    )
    scale = rng.uniform(0.5, 1, (n, groups)).astype(np.float32)
    offset = rng.integers(-8, 8, (n, groups)).astype(np.float32)
    return rng.integers(0, 16, (k, n)), table, scale, offset


def weights(codes, table, scale, offset, group):
    """The matrix that the codes stand for, in float64."""
    k, n = codes.shape
    of_k, columns = np.arange(k)[:, None] // (group or k), np.arange(n)[None]
    table = table.astype(np.float64)
    entries = {1: lambda: table[codes], 2: lambda: table[columns, codes], 3: lambda: table[columns, of_k, codes]}[
        table.ndim
    ]()
    return (entries - (0 if offset is None else offset[columns, of_k])) * scale[columns, of_k]


def symmetric(a):
    """Rows as the int8 kernels round them, in float64."""
    most = np.abs(a).max(1, keepdims=True)
    return np.rint(a * (np.float32(127) / most)).astype(np.float64) * (most / np.float32(127))


def close(have, a, w):
    bound = 2e-6 * (np.abs(a).astype(np.float64) @ np.abs(w)) + 1e-6
    assert (np.abs(have - a.astype(np.float64) @ w) <= bound).all()


def supported(per, group):
    return per != "group" or group is None or group >= 128


@cases
@tables
@pytest.mark.parametrize("offsets", [False, True])
def test_int8_tables_multiply_quantized_rows(level, gave, rng, case, per, offsets):
    k, n, m, group = case
    per = per if supported(per, group) else "column"
    codes, table, scale, offset = codebook(rng, k, n, group, per, "int8")
    offset = offset if offsets else None
    a = rng.standard_normal((m, k)).astype(np.float32)
    have = lowbit.matmul(a, lowbit.pack(codes, table, scale, offset, group=group))
    close(have, symmetric(a), weights(codes, table, scale, offset, group))
    gave("lowbit_s8", *S8_LEVELS)


@cases
@tables
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_float_tables_multiply_floats(level, gave, rng, case, per, kind):
    k, n, m, group = case
    per = per if supported(per, group) else "column"
    codes, table, scale, offset = codebook(rng, k, n, group, per, kind)
    a = rng.standard_normal((m, k)).astype(np.float32)
    have = lowbit.matmul(a, lowbit.pack(codes, table, scale, offset, group=group, table_type=kind))
    if kind == "bfloat16":
        a, table = (v.astype(ml_dtypes.bfloat16).astype(np.float32) for v in (a, table))
    close(have, a, weights(codes, table, scale, offset, group))
    gave("lowbit_f32" if kind == "float32" else "lowbit_bf16", *F32_LEVELS)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 16, 33])
def test_a_scale_a_column_gives_the_same_bits_at_every_level(rng, m):
    codes, table, scale, _ = codebook(rng, 777, 50, None, "column", "int8")
    a, bias, found = rng.standard_normal((m, 777)).astype(np.float32), rng.standard_normal(50), []
    for name in native.levels():
        with native.using_level(name):
            found.append(lowbit.matmul(a, lowbit.pack(codes, table, scale), bias))
    assert all((other == found[0]).all() for other in found)


def test_extreme_tables_and_rows_do_not_saturate(level):
    k = 60_000
    a, codes = np.full((3, k), 5, np.float32), np.zeros((k, 2), int)
    for entry in (-128, 127):
        y = lowbit.matmul(a, lowbit.pack(codes, np.full(16, entry)))
        np.testing.assert_allclose(y, np.full((3, 2), 5.0 * entry * k), rtol=1e-6)


def test_threads_do_not_change_a_result(level, threads, rng):
    codes, table, scale, offset = codebook(rng, 512, 1000, 128, "column", "int8")
    a, w = rng.standard_normal((7, 512)).astype(np.float32), lowbit.pack(codes, table, scale, offset, group=128)
    np.testing.assert_array_equal(lowbit.matmul(a, w, threads=threads), lowbit.matmul(a, w, threads=1))


def test_rows_may_be_strided_and_unaligned(level, rng, misaligned):
    codes, table, scale, _ = codebook(rng, 100, 9, None, "column", "int8")
    wide = misaligned(rng.standard_normal((5, 130)).astype(np.float32))
    w = lowbit.pack(codes, table, scale)
    np.testing.assert_array_equal(lowbit.matmul(wide[:, 7:107], w), lowbit.matmul(wide[:, 7:107].copy(), w))


def test_rows_of_zeros_and_no_rows_give_the_bias(level):
    w = lowbit.pack(np.ones((40, 3), int), np.arange(16))
    bias = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(lowbit.matmul(np.zeros((2, 40), np.float32), w, bias), [bias, bias])
    assert lowbit.matmul(np.zeros((0, 40), np.float32), w).shape == (0, 3)


@pytest.mark.parametrize("group", [32, 64, 128, None])
def test_affine_weights_are_codes_less_their_zero_point(level, rng, group):
    k, n = 256, 12
    groups = k // (group or k)
    codes, zero = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (n, groups))
    scale = rng.uniform(0.01, 0.1, (n, groups)).astype(np.float32)
    a = rng.standard_normal((4, k)).astype(np.float32)
    of_k = np.arange(k) // (group or k)
    exact = (codes - zero[:, of_k].T) * scale[:, of_k].T.astype(np.float64)
    close(lowbit.matmul(a, lowbit.pack_affine(codes, scale, zero, group=group)), symmetric(a), exact)


@given(k=st.integers(1, 400), n=st.integers(1, 40), m=st.integers(1, 20))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_products_of_any_size(k, n, m):
    rng = np.random.default_rng(k * n + m)
    codes, table, scale, _ = codebook(rng, k, n, None, "column", "int8")
    a = rng.standard_normal((m, k)).astype(np.float32)
    close(lowbit.matmul(a, lowbit.pack(codes, table, scale)), symmetric(a), weights(codes, table, scale, None, None))


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 63, 1000])
def test_rows_are_quantized_alike_at_every_level(level, gave, threads, rng, columns):
    a = rng.standard_normal((9, columns)).astype(np.float32)
    a[3] = 0
    q, scale = lowbit.quantize_rows(a, threads=threads)
    most = np.abs(a).max(1, keepdims=True)
    np.testing.assert_array_equal(scale, (most / np.float32(127))[:, 0])
    inverse = np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))
    np.testing.assert_array_equal(q, np.rint(a * inverse))
    gave("lowbit_quantize_row", *ROW_LEVELS)


def test_wrong_codes_groups_and_tables_are_refused_in_a_sentence():
    with pytest.raises(NativeError, match="integers from 0 to 15"):
        lowbit.pack(np.full((4, 4), 16), np.arange(16))
    with pytest.raises(NativeError, match="groups of 48 have no kernel; use 32, 64 or a multiple of 128"):
        lowbit.pack(np.zeros((96, 4), int), np.arange(16), group=48)
    with pytest.raises(NativeError, match=r"a table of shape \[15\] fits no"):
        lowbit.pack(np.zeros((4, 4), int), np.arange(15))
