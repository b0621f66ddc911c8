import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from pumice.quantize.error_feedback import codes_with_feedback, output_error, unexplained_moments
from pumice.quantize.grids import AffineGrid, CodebookGrid


def weights(seed=0, shape=(2, 3, 10)):
    return np.random.default_rng(seed).standard_normal(shape)


def codebook(entries, blocks=1, block=10, shape=(2, 3)):
    table = np.sort(np.random.default_rng(1).standard_normal((*shape, blocks, entries)), axis=3)
    return CodebookGrid(table=table, scale=np.full((*shape, 1), 1.5), block=block)


def nearest(values, table):
    return table[np.abs(values[..., None] - table).argmin(axis=-1)]


@given(st.integers(2, 8), st.sampled_from([3, 4, 10]), st.booleans(), st.integers(0, 1000))
def test_an_affine_grid_that_covers_a_block_is_off_by_half_a_step_at_most(bits, block, symmetric, seed):
    exact = weights(seed)
    grid = AffineGrid.covering(exact, bits=bits, block=block, symmetric=symmetric)
    step = np.repeat(grid.scale, block, axis=2)[:, :, :10]
    slack = 0.5 if symmetric else 1.0  # the zero point is rounded as well
    assert np.all(np.abs(grid.values(grid.codes(exact)) - exact) <= slack * step * (1 + 1e-6))


@pytest.mark.parametrize("entries", [2, 16, 200])
@pytest.mark.parametrize(("blocks", "block"), [(1, 10), (3, 4)])
def test_a_codebook_gives_every_weight_the_nearest_entry_of_its_block(entries, blocks, block):
    grid, exact = codebook(entries, blocks, block), weights()
    found = grid.values(grid.codes(exact))
    for group, output, k in np.ndindex(exact.shape):
        table = 1.5 * grid.table[group, output, min(k // block, blocks - 1)]
        assert found[group, output, k] == nearest(exact[group, output, k], table)


def test_a_table_for_all_gives_every_weight_the_nearest_entry():
    table = np.array([-1.0, 0.0, 0.5, 2.0])
    grid = CodebookGrid(table=table.reshape(1, 1, 1, -1), scale=np.ones((2, 3, 1)), block=10)
    np.testing.assert_array_equal(grid.values(grid.codes(weights())), nearest(weights(), table))


@pytest.mark.parametrize(
    "grid", [AffineGrid.covering(weights(), bits=3, block=4, symmetric=False), codebook(8, 3, 4), codebook(8)]
)
def test_a_column_rounds_as_the_whole_grid_does(grid):
    exact = weights()
    inputs = np.array([7, 2])
    column = np.take_along_axis(exact, inputs[:, None, None], axis=2)
    expected = np.take_along_axis(grid.codes(exact), inputs[:, None, None], axis=2)
    np.testing.assert_array_equal(grid.column(inputs).codes(column), expected)
    np.testing.assert_array_equal(
        grid.column(inputs).values(expected),
        np.take_along_axis(grid.values(grid.codes(exact)), inputs[:, None, None], axis=2),
    )


def test_a_block_of_zeros_stays_zero():
    grid = AffineGrid.covering(np.zeros((1, 1, 8)), bits=4, block=4, symmetric=False)
    assert not grid.values(grid.codes(np.zeros((1, 1, 8)))).any()


@pytest.mark.parametrize("grid", [AffineGrid.covering(weights(), bits=3, block=4, symmetric=True), codebook(4)])
def test_error_feedback_disturbs_the_output_less_on_any_grid(grid):
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((2, 10, 200)) + rng.standard_normal((2, 1, 200))
    second, exact = inputs @ inputs.transpose(0, 2, 1) / 200, weights()
    errors = [
        output_error(exact - grid.values(codes), second)
        for codes in (codes_with_feedback(exact, grid, second), grid.codes(exact))
    ]
    assert np.all(errors[0] <= errors[1] + 1e-12)
    assert errors[0].sum() < 0.9 * errors[1].sum()


def test_what_the_inputs_still_to_come_cannot_make_up_for_is_their_determinant():
    inputs = np.random.default_rng(4).standard_normal((2, 6, 40)) * np.arange(1.0, 7.0)[:, None]
    second = inputs @ inputs.transpose(0, 2, 1) / 40
    found = unexplained_moments(second)
    np.testing.assert_allclose(found.prod(axis=1), np.linalg.det(second))
    loudest = np.einsum("gkk->gk", second).argmax(axis=1)  # rounded first: all others make up for it
    every = 1.0 / np.einsum("gkk->gk", np.linalg.inv(second))
    np.testing.assert_allclose(found[[0, 1], loudest], every[[0, 1], loudest])


def test_long_blocks_are_searched_as_short_ones_are_compared():
    rng = np.random.default_rng(5)
    table = np.sort(rng.standard_normal((1, 3, 1, 16)), axis=3)
    long = rng.standard_normal((1, 3, 300))
    grid = CodebookGrid(table=table, scale=np.ones((1, 3, 1)), block=300)
    short = [attrs.evolve(grid, block=100).codes(long[:, :, at : at + 100]) for at in (0, 100, 200)]
    np.testing.assert_array_equal(grid.codes(long), np.concatenate(short, axis=2))
