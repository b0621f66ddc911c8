"""Matrix products at every level against arithmetic that is plainly right: float64 for floats, int64 for integers."""

import ctypes
import mmap

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pumice_cpu import native
from pumice_cpu.gemm import Epilogue, batched, bound, gemm, pack, product

FLOAT_LEVELS = ("scalar", "avx2", "avx512", "neon")
INTEGER_LEVELS = ("scalar", "avx2", "avx_vnni", "avx512", "avx512_vnni", "amx", "neon", "neon_dotprod", "i8mm")
BFLOAT_LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon")
STORE_LEVELS = ("scalar", "avx2", "avx512", "neon")

SIZES = [(1, 1, 1), (1, 7, 33), (2, 3, 5), (3, 64, 31), (5, 65, 32), (7, 4, 48), (13, 33, 17), (14, 128, 64),
         (15, 130, 65), (33, 63, 96), (49, 100, 40), (70, 17, 3), (6, 1100, 35), (64, 9, 130)]  # fmt: skip
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
S32 = Epilogue(output=np.int32)


def floats(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def integers(rng, shape, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high + 1, shape).astype(dtype)


def close(have, a, b, eps):
    """Within the bound of a sum of products of rounded operands, which does not depend on the order of summation."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = eps * (a.shape[1] + 4) ** 0.5 * 4 * (np.abs(a) @ np.abs(b)) + 1e-30
    assert (np.abs(have - a @ b) <= bound).all()


# --- each product at each level ---------------------------------------------------------------------------------------


@sizes
def test_float_products_are_within_the_error_of_their_sums(level, gave, rng, size):
    m, k, n = size
    a, b = floats(rng, m, k), floats(rng, k, n)
    close(gemm(a, pack(b)), a, b, np.finfo(np.float32).eps)
    gave("gemm_float", *FLOAT_LEVELS)


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("size", [(40, 9, 33), (300, 130, 70), (70, 65, 300), (33, 1100, 257)])
def test_products_of_new_matrices_of_any_strides(level, rng, size, flips):
    m, k, n = size
    a = floats(rng, k, m).T if flips[0] else floats(rng, m, k)
    b = floats(rng, n, k).T if flips[1] else floats(rng, k, n)
    close(product(a, b), a, b, 2.0**-18)


def test_products_of_new_matrices_do_not_depend_on_the_threads(rng, threads):
    for m, n in ((300, 200), (200, 300)):
        a, b = floats(rng, m, 140), floats(rng, 140, n)
        np.testing.assert_array_equal(product(a, b, threads=threads), product(a, b, threads=1))


def test_products_of_new_matrices_keep_infinities(level, rng):
    a, b = floats(rng, 128, 128), floats(rng, 128, 128)
    a[3, 5], b[5] = np.inf, 1.0
    assert np.array_equal(np.isposinf(product(a, b)), np.isposinf(a @ b))


@sizes
@pytest.mark.parametrize("types", [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8")])
def test_integer_products_are_exact(level, gave, rng, size, types):
    m, k, n = size
    a, b = integers(rng, (m, k), types[0]), integers(rng, (k, n), types[1])
    za, zb = 3, integers(rng, n, types[1]).astype(np.int32)
    exact = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
    np.testing.assert_array_equal(gemm(a, pack(b, "integer"), S32, a_zero=za, b_zero=zb), exact)
    gave("gemm_integer", *INTEGER_LEVELS)


def test_integer_products_of_extremes_do_not_saturate(level):
    a, b = np.full((3, 1000), 255, np.uint8), np.full((1000, 5), -128, np.int8)
    assert (gemm(a, pack(b, "integer"), S32) == -255 * 128 * 1000).all()


@sizes
def test_bfloat_products_sum_in_float32(level, gave, rng, size):
    m, k, n = size
    a, b = floats(rng, m, k).astype(ml_dtypes.bfloat16), floats(rng, k, n).astype(ml_dtypes.bfloat16)
    close(gemm(a, pack(b, "bfloat")), a.astype(np.float32), b.astype(np.float32), np.finfo(np.float32).eps)
    gave("gemm_bfloat", *BFLOAT_LEVELS)


def test_a_bfloat_product_rounds_float_operands_first(level, rng):
    a, b = floats(rng, 9, 40), floats(rng, 40, 21)
    rounded = [x.astype(ml_dtypes.bfloat16) for x in (a, b)]
    np.testing.assert_array_equal(gemm(a, pack(b, "bfloat")), gemm(rounded[0], pack(rounded[1], "bfloat")))


@given(m=st.integers(1, 80), k=st.integers(0, 150), n=st.integers(1, 90), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_level_gives_the_same_integers(m, k, n, seed):
    rng = np.random.default_rng(seed)
    a, b = integers(rng, (m, k), np.uint8), integers(rng, (k, n), np.int8)
    e = Epilogue(output=np.int8, scale=rng.random(n) * 1e-3, bias=floats(rng, n), zero=-4)
    results = []
    for name in native.levels():
        with native.using_level(name):
            results.append(gemm(a, pack(b, "integer"), e, a_zero=11))
    assert all(r.tobytes() == results[0].tobytes() for r in results)


@pytest.mark.parametrize("size", [(3, 2500, 900), (70, 2500, 900), (321, 1100, 96), (40, 4500, 70)])
def test_operands_that_no_cache_holds_give_the_same_integers(level, rng, size):
    """Several slices and blocks of k, of rows and of panels, whichever operand stays in cache."""
    m, k, n = size
    a, b = integers(rng, (m, k), np.uint8), integers(rng, (k, n), np.int8)
    some = rng.integers(0, m, 3)  # what float64 multiplies exactly
    found = gemm(a, pack(b, "integer"), S32, threads=2)
    np.testing.assert_array_equal(found[some], a[some].astype(np.float64) @ b.astype(np.float64))
    np.testing.assert_array_equal(found.sum(0, np.int64), a.sum(0, np.int64) @ b.astype(np.int64))


def test_a_bound_product_reads_its_operands_anew_at_every_call(level, rng):
    a, b, out = floats(rng, 5, 40), pack(floats(rng, 40, 21)), np.empty((5, 21), np.float32)
    call = bound(a, b, Epilogue(), out)
    for _ in range(2):
        a[...] = floats(rng, 5, 40)
        call()
        np.testing.assert_array_equal(out, gemm(a, b))


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_operands_may_be_transposed_strided_and_unaligned(level, rng, misaligned):
    a, b = floats(rng, 37, 50), floats(rng, 50, 45)
    expected = gemm(a, pack(b))
    np.testing.assert_array_equal(gemm(np.asfortranarray(a), pack(np.asfortranarray(b))), expected)
    wide = np.zeros((74, 100), np.float32)
    wide[::2, ::2] = a
    np.testing.assert_array_equal(gemm(wide[::2, ::2], pack(b)), expected)
    np.testing.assert_array_equal(gemm(misaligned(a), pack(misaligned(b, 3))), expected)
    np.testing.assert_array_equal(gemm(a[::-1], pack(b))[::-1], expected)


def test_integer_operands_may_be_transposed_strided_and_unaligned(level, rng, misaligned):
    a, b = integers(rng, (37, 51), np.uint8), integers(rng, (51, 45), np.int8)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    for left, right in [(np.asfortranarray(a), np.asfortranarray(b)), (misaligned(a), misaligned(b, 3))]:
        np.testing.assert_array_equal(gemm(left, pack(right, "integer"), S32), expected)
    wide = np.zeros((37, 102), np.uint8)
    wide[:, ::2] = a
    np.testing.assert_array_equal(gemm(wide[:, ::2], pack(b, "integer"), S32), expected)


def test_results_go_into_rows_of_a_larger_array(level, rng):
    a, b, room = floats(rng, 20, 30), floats(rng, 30, 40), np.full((20, 60), 7, np.float32)
    gemm(a, pack(b), out=room[:, 5:45])
    np.testing.assert_array_equal(room[:, 5:45], gemm(a, pack(b)))
    assert (room[:, :5] == 7).all()
    assert (room[:, 45:] == 7).all()


def test_nothing_is_read_beyond_the_operands(level, rng):
    """Rows end where a page without access begins."""
    libc = ctypes.CDLL(None, use_errno=True)
    end = 4 * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, end + mmap.PAGESIZE), np.uint8)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + end), mmap.PAGESIZE, 0) == 0
    for k in (1, 2, 3, 5, 63, 65, 127):
        a = memory[end - 17 * k : end].reshape(17, k)
        b = integers(rng, (k, 19), np.int8)
        np.testing.assert_array_equal(gemm(a, pack(b, "integer"), S32), a.astype(np.int64) @ b.astype(np.int64))
        ordinary = floats(rng, 17, k)
        guarded = memory[end - 17 * k * 4 : end].view(np.float32).reshape(17, k)
        guarded[...] = ordinary
        weights = pack(floats(rng, k, 19))
        np.testing.assert_array_equal(gemm(guarded, weights), gemm(ordinary, weights))


@pytest.mark.parametrize("size", [(0, 5, 4), (5, 0, 4), (5, 4, 0)])
def test_empty_operands_give_zeros_or_nothing(level, size):
    m, k, n = size
    result = gemm(np.ones((m, k), np.float32), pack(np.ones((k, n), np.float32)))
    np.testing.assert_array_equal(result, np.zeros((m, n)))


def test_threads_do_not_change_a_bit(level, rng, threads):
    a, b = floats(rng, 203, 700), floats(rng, 700, 330)
    assert gemm(a, pack(b), threads=threads).tobytes() == gemm(a, pack(b), threads=1).tobytes()
    qa, qb = integers(rng, (203, 700), np.uint8), integers(rng, (700, 830), np.int8)
    np.testing.assert_array_equal(
        gemm(qa, pack(qb, "integer"), S32, threads=threads), qa.astype(np.int64) @ qb.astype(np.int64)
    )


def test_packed_weights_outlive_a_change_of_level(rng):
    a, b = floats(rng, 11, 20), floats(rng, 20, 30)
    with native.using_level("scalar"):
        packed = pack(b)
        expected = gemm(a, packed)
    np.testing.assert_array_equal(gemm(a, packed), expected)


# --- stacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes", [((3, 7, 9), (3, 9, 5)), ((2, 3, 7, 9), (9, 5)), ((7, 9), (4, 9, 5)), ((2, 1, 7, 9), (3, 9, 5))]
)
def test_stacks_follow_numpys_broadcasting(level, rng, threads, shapes):
    a, b = floats(rng, *shapes[0]), floats(rng, *shapes[1])
    np.testing.assert_allclose(batched(a, b, threads=threads), a @ b, rtol=1e-5, atol=1e-5)
    qa, qb = integers(rng, shapes[0], np.uint8), integers(rng, shapes[1], np.int8)
    result = batched(qa, qb, "integer", S32, a_zero=3, b_zero=-2, threads=threads)
    np.testing.assert_array_equal(result, (qa.astype(np.int64) - 3) @ (qb.astype(np.int64) + 2))


def test_a_transposed_stack_is_read_in_place(level, rng):
    q, k = floats(rng, 2, 50, 3, 16), floats(rng, 2, 50, 3, 16)
    scores = batched(q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(scores, np.einsum("bihd,bjhd->bhij", q, k), rtol=1e-5, atol=1e-5)


# --- the epilogue -----------------------------------------------------------------------------------------------------


def truth(sums, e, n):
    """The epilogue as written in api.h, in float32 and one operation at a time."""
    one = np.float32
    v = sums.astype(one)
    for name, shape in (("scale", (1, -1)), ("row_scale", (-1, 1))):
        if getattr(e, name) is not None:
            v = v * np.asarray(getattr(e, name), one).reshape(shape)
    if e.bias is not None:
        v = v + np.asarray(e.bias, one)
    if e.residual is not None:
        zero = e.residual_zero if e.residual.dtype.kind in "iu" else 0
        v = v + (e.residual.astype(one) - one(zero)) * one(e.residual_scale)
    if e.activation == "clip":
        v = np.clip(v, one(e.low), one(e.high))
    dtype = np.dtype(e.output)
    if dtype.kind not in "iu":
        return v.astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    q = (np.rint(np.clip(v / one(e.divisor), low - e.zero, high - e.zero)) + e.zero).astype(dtype)
    return q if e.table is None else np.asarray(e.table)[q.view(np.uint8)].view(dtype)


def epilogues(rng, m, n):
    """Each field alone, and all together."""
    scale, bias = rng.random(n).astype(np.float32) * 1e-3, floats(rng, n)
    everything = dict(scale=scale, bias=bias, row_scale=rng.random(m).astype(np.float32))
    for output in (np.float32, ml_dtypes.bfloat16, np.uint8, np.int8):
        yield Epilogue(output=output, scale=1e-3)
        yield Epilogue(output=output, scale=scale, bias=bias, zero=7)
        yield Epilogue(output=output, **everything, activation="clip", low=0, high=6, divisor=0.3, zero=-3)
        for kind in (np.float32, ml_dtypes.bfloat16, np.uint8, np.int8):
            residual = integers(rng, (m, n), np.int8).astype(kind)
            yield Epilogue(output=output, **everything, residual=residual, residual_scale=0.2, residual_zero=5)
    yield Epilogue(output=np.float32, scale=1e-3, residual=floats(rng, n), residual_scale=0.5)
    yield Epilogue(output=np.uint8, scale=1e-3, zero=100, table=rng.permutation(256).astype(np.uint8))
    yield Epilogue(output=np.int8, scale=1e-3, zero=10, table=rng.permutation(256).astype(np.uint8).view(np.int8))


@pytest.mark.parametrize("size", [(5, 40, 37), (33, 70, 64), (1, 9, 3)])
def test_integer_epilogues_are_the_same_bits_at_every_level(level, gave, rng, size):
    m, k, n = size
    a, b = integers(rng, (m, k), np.uint8), integers(rng, (k, n), np.int8)
    sums = a.astype(np.int64) @ b.astype(np.int64)
    for e in epilogues(rng, m, n):
        np.testing.assert_array_equal(gemm(a, pack(b, "integer"), e), truth(sums, e, n))


@pytest.mark.parametrize("size", [(5, 40, 37), (33, 70, 64)])
def test_float_epilogues_apply_to_the_plain_sums(level, rng, size):
    m, k, n = size
    a, b = floats(rng, m, k) * 30, floats(rng, k, n)
    sums = gemm(a, pack(b))
    for e in epilogues(rng, m, n):
        np.testing.assert_array_equal(gemm(a, pack(b), e), truth(sums, e, n))


def test_halves_round_to_even_and_everything_saturates(level):
    a, b = np.arange(1, 256, dtype=np.uint8).reshape(-1, 1), np.array([[1, -1, 127, -128]], np.int8)
    for output, zero in ((np.uint8, 0), (np.uint8, 3), (np.int8, -1)):
        e = Epilogue(output=output, scale=0.5, zero=zero)
        np.testing.assert_array_equal(gemm(a, pack(b, "integer"), e), truth(a.astype(int) @ b.astype(int), e, 4))


def test_an_integer_bias_is_added_before_the_scale(level, rng):
    a, b = integers(rng, (9, 30), np.int8), integers(rng, (30, 40), np.int8)
    bias = rng.integers(-(2**20), 2**20, 40).astype(np.int32)
    exact = a.astype(np.int64) @ b.astype(np.int64) + bias
    result = gemm(a, pack(b, "integer"), Epilogue(output=np.int32, offset=bias))
    np.testing.assert_array_equal(result, exact)


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sigmoid"])
def test_activations_are_those_of_float64(level, rng, name):
    from scipy.special import erf, expit

    a, b = floats(rng, 23, 16) * 2, floats(rng, 16, 37)
    x = gemm(a, pack(b)).astype(np.float64)
    expected = {"gelu": x / 2 * (1 + erf(x / 2**0.5)), "silu": x * expit(x), "tanh": np.tanh(x), "sigmoid": expit(x)}
    np.testing.assert_allclose(gemm(a, pack(b), Epilogue(activation=name)), expected[name], rtol=2e-6, atol=2e-7)


def test_nan_and_infinity_pass_a_clip(level):
    a = np.array([[np.nan], [np.inf], [-np.inf], [2]], np.float32)
    result = gemm(a, pack(np.ones((1, 3), np.float32)), Epilogue(activation="clip", low=0, high=5))
    np.testing.assert_array_equal(result[:, 0], [np.nan, 5, 0, 2])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_result_over_an_operand_is_refused(rng):
    a = floats(rng, 8, 8)
    with pytest.raises(native.NativeError, match="overwrite an operand"):
        gemm(a, pack(a), out=a)


def test_types_without_a_kernel_are_refused_by_name(rng):
    with pytest.raises(native.NativeError, match="float64"):
        pack(rng.standard_normal((3, 3)))


def test_shapes_that_do_not_fit_are_refused(rng):
    with pytest.raises(native.NativeError, match="do not fit"):
        gemm(floats(rng, 3, 4), pack(floats(rng, 5, 6)))


def test_sums_that_could_overflow_are_refused():
    with pytest.raises(native.NativeError, match="overflow"):
        pack(np.zeros((70_000, 1), np.int8), "integer")
