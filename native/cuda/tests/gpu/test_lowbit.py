"""4-bit products against float64, for every way to decode, at odd sizes."""

import cupy
import ml_dtypes
import numpy as np
import pytest

from pumice_cuda import lowbit

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUNDED = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}
"""Of the result."""
CASES = [
    (128, 16, 1, None), (300, 7, 3, 128), (1000, 33, 9, 32), (1000, 33, 2, 64), (1024, 35, 17, 256),
    (257, 18, 70, None), (640, 16, 5, 128), (1, 1, 1, None), (4096, 4256, 1, 128), (129, 17, 130, 32),
    (2048, 96, 33, 64), (4096, 4128, 8, None), (1000, 4100, 3, 128), (2000, 8200, 5, None), (4096, 2100, 7, 256),
    (1000, 4100, 20, None), (2176, 200, 128, None), (1032, 136, 257, 128),
]  # fmt: skip


def codebook(rng, k, n, group, per):
    groups = -(-k // (group or k))
    shape = {"integers": (16,), "matrix": (16,), "column": (n, 16), "group": (n, groups, 16)}[per.split()[0]]
    table = rng.standard_normal(shape).astype(np.float32)
    if per == "integers":
        table = np.arange(16, dtype=np.float32) - 3
    elif per.endswith("bytes"):
        table = rng.integers(-128, 128, shape).astype(np.float32)
    scale = rng.uniform(0.5, 1, (n, groups)).astype(np.float32)
    return rng.integers(0, 16, (k, n)), table, scale, rng.uniform(-8, 8, (n, groups)).astype(np.float32)


def weights(codes, table, scale, offset, group):
    """The matrix that the codes stand for, in float64."""
    k, n = codes.shape
    of_k, columns = np.arange(k)[:, None] // (group or k), np.arange(n)[None]
    table = table.astype(np.float64)
    entries = {1: lambda: table[codes], 2: lambda: table[columns, codes], 3: lambda: table[columns, of_k, codes]}
    return (entries[table.ndim]() - (0 if offset is None else offset[columns, of_k])) * scale[columns, of_k]


def close(found, a, w, dtype, entries, bias=0):
    """With many rows of half precision the weights are rounded to it, too."""
    once = ROUNDED[dtype] if len(a.reshape(-1, a.shape[-1])) > lowbit.FEW else 0
    wide, have = a.astype(np.float64), cupy.asnumpy(found).astype(np.float64)
    assert found.dtype.name == dtype
    exact = wide @ w + bias
    assert (
        np.abs(have - exact) <= ROUNDED[dtype] * np.abs(exact) + (2e-5 + once) * (np.abs(wide) @ entries) + 1e-6
    ).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("per", ["integers", "matrix", "matrix bytes", "column", "column bytes", "group"])
@pytest.mark.parametrize("offsets", [False, True])
def test_products_are_those_of_the_decoded_matrix(rng, dtype, case, per, offsets):
    k, n, m, group = case
    codes, table, scale, offset = codebook(rng, k, n, group, per)
    offset = offset if offsets else None
    packed = lowbit.pack(codes, table, scale, offset, group=group)
    a = rng.standard_normal((m, k)).astype(TYPES[dtype])
    bias = rng.standard_normal(n).astype(TYPES[dtype]) if offsets else None
    w = weights(codes, table, scale, offset, group)
    size = np.abs(weights(codes, table, scale, None, group)) + (0 if offset is None else 8)
    found = lowbit.matmul(cupy.asarray(a), packed, None if bias is None else cupy.asarray(bias))
    close(found, a, w, dtype, size, 0 if bias is None else bias.astype(np.float64))


def test_affine_weights_have_a_zero_point(rng):
    codes, scale = rng.integers(0, 16, (256, 40)), rng.uniform(0.5, 1, (40, 2)).astype(np.float32)
    zero = rng.integers(0, 16, (40, 2)).astype(np.uint8)
    a = rng.standard_normal((2, 3, 256)).astype(np.float32)
    for points, stands in ((zero, zero.astype(np.float32)), (None, np.full((40, 2), 8, np.float32))):
        w = weights(codes, np.arange(16, dtype=np.float32), scale, stands, 128)
        found = lowbit.matmul(cupy.asarray(a), lowbit.pack_affine(codes, scale, points, group=128))
        assert found.shape == (2, 3, 40)
        close(found, a, w, "float32", np.full((256, 40), 16))


@pytest.mark.parametrize("rows", [1, 8, 20, 128])
def test_whole_zero_points_lose_nothing(rng, rows):
    """Codes less such a zero point are multiplied as they are."""
    codes, zero = rng.integers(0, 16, (4096, 2100)), rng.integers(0, 16, (2100, 32)).astype(np.uint8)
    scale = rng.uniform(0.5, 1, (2100, 32)).astype(np.float32)
    a = rng.standard_normal((rows, 4096)).astype(ml_dtypes.bfloat16)
    w = weights(codes, np.arange(16, dtype=np.float32), scale, zero.astype(np.float32), 128)
    found = lowbit.matmul(cupy.asarray(a), lowbit.pack_affine(codes, scale, zero, group=128))
    close(found, a, w, "bfloat16", np.abs(w))


@pytest.mark.parametrize("per", ["integers", "matrix", "column"])
@pytest.mark.parametrize("rows", [1, 8, 100])
def test_products_wait_for_what_they_read(rng, per, rows):
    """Each starts while the one before it, which writes what it multiplies, still runs."""
    codes, table, scale, _ = codebook(rng, 4096, 4096, None, per)
    packed = lowbit.pack(codes, table, scale / 64)
    first = cupy.asarray(rng.standard_normal((rows, 4096)).astype(ml_dtypes.bfloat16))

    def chain(pause):
        y = first
        for _ in range(8):
            y = lowbit.matmul(y, packed)
            pause()
        return cupy.asnumpy(y).tobytes()

    assert chain(lambda: None) == chain(cupy.cuda.Device().synchronize)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per", ["integers", "matrix", "column", "group"])
def test_the_decoded_matrix_is_what_the_codes_stand_for(rng, dtype, per):
    for k, n, group in ((256, 40, 64), (1000, 17, 256), (136, 3, None)):
        codes, table, scale, offset = codebook(rng, k, n, group, per)
        found = lowbit.decoded(lowbit.pack(codes, table, scale, offset, group=group), TYPES[dtype])
        exact = weights(codes, table, scale, offset, group).T
        off = np.abs(cupy.asnumpy(found).astype(np.float64) - exact)
        assert (off <= ROUNDED[dtype] * np.abs(exact) + 2e-5 * 20).all()  # no entry less its offset is above 20


def test_codes_take_half_a_byte(rng):
    packed = lowbit.pack_affine(rng.integers(0, 16, (1024, 512)), np.float32(0.1))
    assert packed.codes.nbytes == 1024 * 512 // 2


def test_weights_are_packed_when_pack_returns(rng):
    """A product that overlaps what was queued before it reads them at once."""
    codes = codebook(rng, 4096, 512, 128, "column")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        a = cupy.ones((8192, 8192), np.float32)
        for _ in range(4):
            a = a @ a  # keeps the stream busy
        lowbit.pack(*codes, group=128)
        assert stream.done


def test_products_are_the_same_every_time(rng):
    packed = lowbit.pack(*codebook(rng, 4096, 2112, 128, "integers"), group=128)
    for rows, dtype in ((1, np.float32), (100, np.float32), (8, ml_dtypes.bfloat16), (100, ml_dtypes.bfloat16)):
        a = cupy.asarray(rng.standard_normal((rows, 4096)).astype(dtype))
        assert len({cupy.asnumpy(lowbit.matmul(a, packed)).tobytes() for _ in range(5)}) == 1
