"""How products are divided, worked out without a GPU."""

import numpy as np
import pytest

from pumice_cuda.compiling import resources
from pumice_cuda.epilogue import INSTRUCTIONS_OF_LEVELS
from pumice_cuda.gemm import RESERVED, SHARED, Tiling, Work, _tilings, readable, tiling

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
        ((6272, 512, 8, 4), Tiling(consumers=2, width=256)),
        ((1568, 512, 36, 4), Tiling(consumers=1, width=128)),
    ],
)
def test_the_model_knows_what_finishing_levels_costs(shape, wanted):
    m, n, steps, parts = shape
    work = Work(m=m, n=n, steps=steps, parts=parts, finishing=INSTRUCTIONS_OF_LEVELS)
    assert tiling(work, PROCESSORS) == wanted


@pytest.mark.parametrize("source", ["gemm_sm90", "conv_sm90"])
@pytest.mark.parametrize("output", ["bf16", "s8"])
@pytest.mark.parametrize("beside", [0, 8], ids=["traded", "neighbours"])
@pytest.mark.parametrize(
    ("division", "parts"),
    [(Tiling(consumers=2, width=256), 4), (Tiling(consumers=2, width=64, together=2), 2)],
    ids=["large", "small"],
)
def test_sums_stay_in_registers(source, output, beside, division, parts):
    options = ("-DUSE_ELEMENT=s8", f"-DUSE_OUTPUT={output}", "-DUSE_ACTIVATION=none", "-DUSE_RESIDUAL=false")
    options = (*options, *division.macros(parts, beside))
    (found,) = resources(source, arch="sm_90a", options=options).values()
    assert found.spills == found.stack == 0


@pytest.mark.parametrize(("rows", "kept"), [(1, 33), (4, 33), (1, 5)])
def test_rows_that_do_not_end_at_an_access_are_copied_and_filled_with_zeros(gpu, rows, kept):
    matrix = gpu.asarray(np.ones((rows, 64), np.int8))[:, :kept]
    whole = readable(matrix)
    assert whole.shape[1] % 16 == 0
    assert int(whole.sum()) == rows * kept
