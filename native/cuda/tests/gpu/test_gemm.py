"""Matrix products on a GPU against exact sums in float64."""

import numpy as np
import pytest

from pumice_cuda import gemm as products
from pumice_cuda.epilogue import Epilogue, LevelSum
from pumice_cuda.gemm import AmpereTiling, Tiling, gemm

SHAPES = [(1, 5, 2048), (77, 33, 528), (128, 256, 512), (1000, 528, 1040), (300, 1111, 100), (129, 257, 63), (3, 2, 1)]
TILINGS = [
    Tiling(consumers=2, width=256), Tiling(consumers=2, width=128), Tiling(consumers=3, width=128),
    Tiling(consumers=1, width=64), Tiling(consumers=1, width=256), Tiling(consumers=2, width=64),
    Tiling(consumers=2, width=128, splits=2), Tiling(consumers=1, width=128, splits=2),
    Tiling(consumers=2, width=256, splits=2),
]  # fmt: skip
BITS = {"float16": 10, "bfloat16": 7, "float32": 9}
"""Of the mantissa that is multiplied, less one for truncation."""


def exact(a, b):
    return a.astype(np.float64) @ b.astype(np.float64).T


@pytest.fixture(params=["on_hopper", "on_ampere", "on_turing"])
def run(request):
    """`gemm` by one of its kernels."""

    def multiply(a, b, epilogue):
        import cupy

        out = cupy.empty((len(a), len(b)), epilogue.output)
        getattr(products, request.param)(products.readable(a), products.readable(b), epilogue, out)
        return out

    return multiply


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_sums_of_bytes_are_exact(run, drawn, shape, dtype):
    m, n, k = shape
    a, b = drawn((m, k), dtype), drawn((n, k), "int8")
    assert (run(a, b, Epilogue(output="int32")) == exact(a, b).astype(np.int32)).all()


@pytest.mark.parametrize("tiling", TILINGS, ids=repr)
def test_every_division_gives_the_same_sums(drawn, tiling):
    import cupy

    for m, n, k in [(128, 256, 256), (1000, 528, 1040)]:
        a, b, out = drawn((m, k), "int8"), drawn((n, k), "int8"), cupy.empty((m, n), np.int32)
        products.on_hopper(a, b, Epilogue(output="int32"), out, tiling)
        assert (out == exact(a, b).astype(np.int32)).all()


@pytest.mark.parametrize("output", ["bfloat16", "int8"])
@pytest.mark.parametrize(("m", "n", "k"), [(2100, 1984, 2048), (2176, 2048, 4000)])
def test_values_that_are_stored_during_the_next_tile_are_the_same(drawn, output, m, n, k):
    import cupy

    a, b, scale = drawn((m, k), "int8"), drawn((n, k), "int8"), cupy.full(1, 2e-4, np.float32)
    epilogue, found = Epilogue(output=output, scale=scale), []
    for width in (256, 128):
        found.append(cupy.empty((m, n), output))
        found[-1].view(np.uint8).fill(0xFF)
        products.on_hopper(a, b, epilogue, found[-1], Tiling(consumers=2, width=width))
    assert (found[0].view(np.uint8) == found[1].view(np.uint8)).all()


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("output", ["float32", "int8"])
def test_every_division_of_float32_gives_close_sums(drawn, error, width, splits, output):
    import cupy

    chosen = AmpereTiling(width=width, splits=splits)
    for m, n, k in [(128, 256, 256), (300, 531, 1040)]:
        a, b = drawn((m, k), "float32"), drawn((n, k), "float32")
        out, scale = cupy.empty((m, n), output), cupy.full(1, 0.25, np.float32)
        products.on_ampere(a, b, Epilogue(output=output, scale=scale), out, "float32", chosen)
        sums = 0.25 * exact(a, b)
        off = cupy.abs(out - cupy.clip(cupy.rint(sums), -128, 127)).max() if output == "int8" else error(out, sums)
        assert off <= (1 if output == "int8" else 1e-6)


def test_a_product_that_overlaps_the_one_before_waits_for_its_result(drawn):
    import cupy

    first, weights = drawn((512, 1024), "int8"), [drawn((1024, 1024), "int8") for _ in range(4)]
    levels = Epilogue(output="int8", scale=cupy.full(1, 2e-4, np.float32))

    def chain(between):
        last = first
        for matrix in weights:
            last = gemm(last, matrix, levels)
            between()
        return last

    one_by_one = chain(cupy.cuda.Device().synchronize)
    assert (one_by_one != 0).any()
    assert all((chain(lambda: None) == one_by_one).all() for _ in range(20))


@pytest.mark.parametrize("output", ["float32", "float16", "bfloat16", "int8", "uint8"])
@pytest.mark.parametrize("columns", [256, 200, 96, 77])
def test_scales_bias_residual_and_bounds_apply_in_order(run, drawn, error, rng, output, columns):
    import cupy

    m, k = 200, 160
    a, b = drawn((m, k), "int8"), drawn((columns, k), "int8")
    scale, row_scale = (cupy.asarray(rng.uniform(0.01, 0.03, size).astype(np.float32)) for size in (columns, m))
    bias, offset = drawn(columns, "float32"), cupy.asarray(rng.integers(-99, 99, columns).astype(np.int32))
    residual = drawn((m, columns), output)
    epilogue = Epilogue(
        output=output, scale=scale, row_scale=row_scale, bias=bias, offset=offset, residual=residual, activation="clip",
        low=-1.5, high=40.0, level_sum=LevelSum(level_factor=0.75, residual_factor=0.5, offset=-3.0), zero=7,
    )  # fmt: skip
    v, found = (exact(a, b) + offset) * scale * row_scale[:, None] + bias, run(a, b, epilogue)
    if output in {"int8", "uint8"}:
        limits = np.iinfo(output).min, np.iinfo(output).max
        level = cupy.clip(cupy.rint(cupy.clip(v, -1.5, 40.0)) + 7, *limits)
        off = cupy.abs(found - cupy.clip(cupy.rint(level * 0.75 + residual * 0.5 - 3), *limits))
        assert float(off.max()) <= 1
        assert float((off > 0).mean()) < 1e-3  # a rounding in float32 beside a tie
    else:
        wanted = cupy.clip(v + residual, -1.5, 40.0)
        assert error(found, wanted) < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}[output]


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations(run, drawn, error, activation):
    import cupy
    from cupyx.scipy.special import erf, expit

    a, b, scale = drawn((70, 65), "int8"), drawn((66, 65), "int8"), 2.0**-14
    v = exact(a, b) * scale
    wanted = v * expit(v) if activation == "silu" else 0.5 * v * (1 + erf(v / np.sqrt(2)))
    epilogue = Epilogue(activation=activation, scale=cupy.full(1, scale, np.float32))
    assert error(run(a, b, epilogue), wanted) < 1e-6


@pytest.mark.parametrize("shape", [(200, 136, 96), (65, 130, 77)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_products_of_floats_lose_only_what_the_type_does(drawn, error, shape, dtype, capability):
    import cupy

    m, n, k = shape
    a, b, out = drawn((m, k), dtype), drawn((n, k), dtype), cupy.empty((m, n), np.float32)
    (products.on_hopper if capability == (9, 0) else products.on_ampere)(
        products.readable(a), products.readable(b), Epilogue(), out
    )
    assert error(out, exact(a, b)) < (1e-6 if dtype != "float32" else 2.0 ** -BITS[dtype])


@pytest.mark.parametrize("rows", [1, 3])
def test_what_lies_behind_a_row_is_not_multiplied(run, drawn, rows):
    a, b = drawn((7, 33), "int8"), drawn((rows, 48), "int8")[:, :33]
    assert (run(a, b, Epilogue(output="int32")) == exact(a, b)).all()
    found = gemm(drawn((7, 33), "float16"), _before_nan(drawn((rows, 33), "float16")))
    assert not np.isnan(found.get()).any()


def _before_nan(matrix):
    """The same rows, with NaN behind each."""
    import cupy

    wide = cupy.full((len(matrix), 40), np.nan, matrix.dtype)
    wide[:, : matrix.shape[1]] = matrix
    return wide[:, : matrix.shape[1]]


def test_three_products_have_the_accuracy_of_float32(drawn, error):
    a, b = drawn((300, 5000), "float32"), drawn((200, 5000), "float32")
    assert error(gemm(a, b, precision="float32"), exact(a, b)) < 1e-6


def test_nan_stays_nan(drawn):
    import cupy

    a, b = drawn((32, 32), "float16"), drawn((32, 32), "float16")
    a[3, 5] = np.nan
    found = gemm(a, b, Epilogue(activation="clip", low=0.0))
    assert cupy.isnan(found[3]).all()
    assert not cupy.isnan(found[:3]).any()


def test_an_infinite_scale_saturates(drawn):
    import cupy

    a, b = drawn((32, 32), "int8"), drawn((32, 32), "int8")
    found = gemm(a, b, Epilogue(output="int8", scale=cupy.full(1, np.inf, np.float32), zero=5))
    sums = exact(a, b)
    assert (found[sums > 0] == 127).all()
    assert (found[sums < 0] == -128).all()


def test_shapes_and_types_that_do_not_fit_are_named(drawn):
    a = drawn((4, 8), "int8")
    with pytest.raises(ValueError, match=r"matrices \[4, 8\] and \[4, 9\]"):
        gemm(a, drawn((4, 9), "int8"))
    with pytest.raises(ValueError, match="no product of int8 and uint8"):
        gemm(a, drawn((4, 8), "uint8"))
    with pytest.raises(ValueError, match=r"bias is float32\[3\] where float32\[4\] is needed"):
        gemm(a, a, Epilogue(bias=drawn(3, "float32")))
