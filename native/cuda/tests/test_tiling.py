"""How products are divided, worked out without a GPU."""

import numpy as np
import pytest

from pumice_cuda import device
from pumice_cuda.compiling import resources
from pumice_cuda.epilogue import INSTRUCTIONS_OF_LEVELS, PLAIN, Epilogue
from pumice_cuda.gemm import RESERVED, SHARED, AmpereTiling, Tiling, Work, _tilings, ampere_tiling, readable, tiling

PROCESSORS = 132


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_every_division_fits_the_shared_memory_and_has_buffers_to_overlap(steps):
    for found in _tilings(Work(m=1, n=1, steps=steps)):
        assert found.together * (found.shared + RESERVED) <= SHARED, found
        assert found.stages >= 3, found


def test_every_tile_is_covered_and_no_block_is_idle():
    for m, n in [(1, 1), (128, 4096), (1000, 528), (8192, 8192)]:
        for found in _tilings(Work(m=m, n=n, steps=8)):
            down, across = found.tiles(m, n)
            assert down * found.height >= m
            assert across * found.width >= n
            blocks = found.blocks(m, n, PROCESSORS)
            assert blocks % found.splits == 0
            assert 0 < blocks <= down * across * found.splits
            assert blocks <= PROCESSORS * found.together or found.splits > 1


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4096, 4096, 32), Tiling(consumers=2, width=256)),
        ((2048, 2048, 16), Tiling(consumers=2, width=256)),
        ((1024, 1024, 8), Tiling(consumers=2, width=64)),
        ((128, 4096, 32), Tiling(consumers=1, width=64)),
    ],
)
def test_the_model_takes_what_was_fastest_on_an_h200(shape, wanted):
    m, n, steps = shape
    assert tiling(Work(m=m, n=n, steps=steps), PROCESSORS) == wanted


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((100352, 64, 1, 2), Tiling(consumers=2, width=64, together=2)),
        ((25088, 512, 2, 4), Tiling(consumers=2, width=256)),
        ((1568, 2048, 4, 4), Tiling(consumers=2, width=256)),
        ((6272, 512, 8, 4), Tiling(consumers=3, width=128)),
        ((6272, 1024, 2, 4), Tiling(consumers=3, width=128)),
        ((6272, 256, 18, 4), Tiling(consumers=2, width=128)),
        ((1568, 512, 36, 4), Tiling(consumers=1, width=128)),
    ],
)
def test_the_model_knows_what_finishing_levels_costs(shape, wanted):
    m, n, steps, parts = shape
    work = Work(m=m, n=n, steps=steps, parts=parts, finishing=INSTRUCTIONS_OF_LEVELS)
    assert tiling(work, PROCESSORS) == wanted


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((25088, 256, 8), Tiling(consumers=3, width=128)),
        ((6272, 256, 16), Tiling(consumers=2, width=128)),
        ((1568, 512, 72), Tiling(consumers=1, width=256, splits=2)),
    ],
)
def test_the_model_takes_the_fastest_for_halves(shape, wanted):
    m, n, steps = shape
    assert tiling(Work(m=m, n=n, steps=steps), PROCESSORS) == wanted


@pytest.mark.parametrize(
    ("shape", "k", "wanted"),
    [
        ((1568, 512), 2048, AmpereTiling(width=128, splits=2)),
        ((6272, 256), 1024, AmpereTiling(width=64, splits=2)),
        ((6272, 512), 1024, AmpereTiling(width=64)),
        ((100_352, 64), 576, AmpereTiling(width=64)),
    ],
)
def test_products_of_float32_are_divided_as_was_fastest_on_an_h200(monkeypatch, shape, k, wanted):
    hopper = device.Gpu(name="", capability=(9, 0), memory=1, multiprocessors=PROCESSORS)
    monkeypatch.setattr(device, "gpu", lambda: hopper)
    assert ampere_tiling("f32", PLAIN, shape, 4 * k) == wanted


def test_k_is_divided_where_there_are_clusters_and_no_ranges(monkeypatch):
    for capability, epilogue in (((8, 0), PLAIN), ((9, 0), Epilogue(ranges=np.empty(0)))):
        found = device.Gpu(name="", capability=capability, memory=1, multiprocessors=PROCESSORS)
        monkeypatch.setattr(device, "gpu", lambda found=found: found)
        assert ampere_tiling("f32", epilogue, (1568, 512), 1 << 14).splits == 1


@pytest.mark.parametrize("source", ["gemm_sm80", "conv_sm80"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_sums_of_float32_stay_in_registers(source, width, splits):
    options = ("-DUSE_ELEMENT=f32", "-DUSE_OUTPUT=f32", "-DUSE_ACTIVATION=none", "-DUSE_RESIDUAL=true")
    options = (*options, *AmpereTiling(width=width, splits=splits).macros)
    (found,) = resources(source, arch="sm_90a", options=options).values()
    assert found.spills == found.stack == 0


@pytest.mark.parametrize("source", ["gemm_sm90", "conv_sm90"])
@pytest.mark.parametrize("output", ["bf16", "s8"])
@pytest.mark.parametrize(
    ("division", "parts", "beside"),
    [
        (Tiling(consumers=2, width=256), 4, 0), (Tiling(consumers=2, width=256), 4, 8),
        (Tiling(consumers=3, width=128), 4, 8),
        (Tiling(consumers=2, width=64, together=2), 2, 0), (Tiling(consumers=2, width=64, together=2), 2, 8),
    ],
    ids=["large traded", "large neighbours", "high neighbours", "small traded", "small neighbours"],
)  # fmt: skip
def test_sums_stay_in_registers(source, output, division, parts, beside):
    options = ("-DUSE_ELEMENT=s8", f"-DUSE_OUTPUT={output}", "-DUSE_ACTIVATION=none", "-DUSE_RESIDUAL=false")
    options = (*options, *division.macros(parts, beside))
    (found,) = resources(source, arch="sm_90a", options=options).values()
    assert found.spills == found.stack == 0


@pytest.mark.parametrize(("output", "beside"), [("bf16", 4), ("u8", 8)])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_values_that_are_stored_later_stay_in_registers(output, beside, activation):
    options = ("-DUSE_ELEMENT=s8", f"-DUSE_OUTPUT={output}", f"-DUSE_ACTIVATION={activation}", "-DUSE_RESIDUAL=false")
    options = (*options, *Tiling(consumers=2, width=256).macros(4, beside), "-DUSE_LATER=1", "-DUSE_ROW_SCALE=true")
    (found,) = resources("gemm_sm90", arch="sm_90a", options=options).values()
    assert found.spills == found.stack == 0


@pytest.mark.parametrize(
    ("m", "steps", "output", "beside", "later"),
    [
        (4096, 32, "bfloat16", 4, True), (4096, 8, "bfloat16", 4, False), (4096, 8, "int8", 8, True),
        (4096, 32, "float32", 2, False), (4096, 32, "bfloat16", 0, False), (1024, 32, "bfloat16", 4, False),
    ],
    ids=["halves", "few steps", "levels", "words", "nothing side by side", "a tile a block"],
)  # fmt: skip
def test_values_are_stored_later_where_there_is_a_later(m, steps, output, beside, later):
    work, epilogue = Work(m=m, n=4096, steps=steps), Epilogue(output=output)
    assert Tiling(consumers=2, width=256).stores_later(work, epilogue, beside, PROCESSORS) == later
    assert not Tiling(consumers=2, width=128).stores_later(work, epilogue, beside, PROCESSORS)
    added = Epilogue(output=output, residual=np.empty(0))
    assert not Tiling(consumers=2, width=256).stores_later(work, added, beside, PROCESSORS)


DIVIDED = [Tiling(consumers=n, width=128, splits=2) for n in (1, 2)]


@pytest.mark.parametrize(("output", "activation"), [("s8", "clip"), ("bf16", "gelu")])
@pytest.mark.parametrize(
    ("element", "division", "beside"),
    [
        ("s8", DIVIDED[0], 0), ("s8", DIVIDED[0], 8), ("s8", DIVIDED[1], 0), ("s8", DIVIDED[1], 8),
        ("s8", Tiling(consumers=2, width=256), 8), ("s8", Tiling(consumers=3, width=128), 8),
        ("s8", Tiling(consumers=1, width=128, together=2), 8),
        ("bf16", Tiling(consumers=1, width=256, splits=2), 8),
    ],
    ids=[
        "one divided traded", "one divided neighbours", "divided traded", "divided neighbours", "large", "high",
        "together", "large divided",
    ],
)  # fmt: skip
def test_sums_that_are_finished_with_a_residual_stay_in_registers(element, division, beside, output, activation):
    options = (f"-DUSE_ELEMENT={element}", f"-DUSE_OUTPUT={output}", f"-DUSE_ACTIVATION={activation}")
    options = (*options, "-DUSE_RESIDUAL=true", *division.macros(4, beside))
    (found,) = resources("gemm_sm90", arch="sm_90a", options=options).values()
    assert found.spills == found.stack == 0


def test_k_of_256_columns_is_divided_where_registers_hold_it():
    for integers, wanted in ((True, []), (False, [1])):
        found = _tilings(Work(m=1, n=1, steps=64, integers=integers))
        assert [t.consumers for t in found if t.splits > 1 and t.width > 128] == wanted


@pytest.mark.parametrize(("rows", "kept"), [(1, 33), (4, 33), (1, 5)])
def test_rows_that_do_not_end_at_an_access_are_copied_and_filled_with_zeros(gpu, rows, kept):
    matrix = gpu.asarray(np.ones((rows, 64), np.int8))[:, :kept]
    whole = readable(matrix)
    assert whole.shape[1] % 16 == 0
    assert int(whole.sum()) == rows * kept
