"""Rounding with error feedback: GPTQ (Frantar et al., ICLR 2023) for any grid.

What rounding the weights W of a layer does to its output is E||(W - Q) x||^2 = tr((W - Q) H (W - Q)^T), H = E[x x^T].
One input column is rounded at a time and its error moved onto the columns still to come, through the Cholesky factor
of H^-1. Columns are visited by falling H[j, j]: what matters most is rounded while there is most freedom left to repair
it. It is greedy, so an output that is better off with the nearest values gets those. A weight that is zero was pruned,
and stays so: what it would have to take up is passed on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.quantize.grids import Grid

BLOCK = 128
"""Columns rounded between two updates of all those still to come."""


def codes_with_feedback(weights: NDArray[np.float64], grid: Grid, second: NDArray[np.float64]) -> NDArray[Any]:
    """The codes of all groups at once.

    Args:
        weights: (groups, outputs, k).
        grid: what they may become.
        second: H, (groups, k, k), positive definite.
    """
    order, ordered = _in_turn(second)
    turned = np.take_along_axis(weights, order[:, None, :], axis=2)
    upper = _upper_factors(ordered)
    nearest = grid.codes(weights)
    fed = np.empty_like(nearest)
    np.put_along_axis(fed, order[:, None, :], _rounded_in_turn(turned, order, grid, upper).astype(fed.dtype), axis=2)
    errors = [output_error(weights - grid.values(codes), second) for codes in (fed, nearest)]
    return np.where((errors[0] <= errors[1])[..., None], fed, nearest)


def unexplained_moments(second: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an error of each input costs in the end: what of H[j, j] the inputs still to come cannot make up for.

    It is 1 / U[j, j]^2, (groups, k); `second` is (groups, k, k), positive definite.
    """
    order, ordered = _in_turn(second)
    found = np.empty(order.shape)
    np.put_along_axis(found, order, np.einsum("gkk->gk", _lower_factors(ordered))[:, ::-1] ** 2, axis=1)
    return found


def output_error(difference: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """d H d^T of every row, (groups, outputs)."""
    return np.asarray(np.einsum("gok,gok->go", difference @ second, difference))


def _in_turn(second: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The order in which inputs are rounded, (groups, k), and H in this order."""
    order = np.argsort(-np.einsum("gkk->gk", second), axis=1, kind="stable")
    return order, np.take_along_axis(np.take_along_axis(second, order[:, :, None], 1), order[:, None, :], 2)


def _rounded_in_turn(
    weights: NDArray[np.float64], order: NDArray[np.intp], grid: Grid, upper: NDArray[np.float64]
) -> NDArray[Any]:
    """One column after the other, its error moved onto those still to come: at once in a block, then as a product."""
    working, codes = weights.copy(), np.empty(weights.shape, np.int32)
    for start in range(0, working.shape[2], BLOCK):
        stop = min(start + BLOCK, working.shape[2])
        errors = np.empty((*working.shape[:2], stop - start))
        for j in range(start, stop):
            column, here = grid.column(order[:, j]), slice(j, j + 1)
            codes[..., here] = column.codes(np.where(weights[..., here] == 0, 0.0, working[..., here]))
            lost = working[..., here] - column.values(codes[..., here])
            errors[..., j - start] = lost[..., 0] / upper[:, j, j, None]
            working[..., j + 1 : stop] -= errors[..., j - start, None] * upper[:, None, j, j + 1 : stop]
        working[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return codes


def _upper_factors(second: NDArray[np.float64]) -> NDArray[np.float64]:
    """U upper triangular with H^-1 = U^T U: the inverse of R, where H = R R^T with R upper triangular.

    R is the Cholesky factor of H with its axes reversed, reversed again.
    """
    from scipy.linalg.lapack import dtrtri

    return np.stack([dtrtri(one[::-1, ::-1], lower=0)[0] for one in _lower_factors(second)])


def _lower_factors(second: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Cholesky factors of H with its axes reversed."""
    try:
        return np.asarray(np.linalg.cholesky(second[:, ::-1, ::-1]), np.float64)
    except np.linalg.LinAlgError:  # correlated up to rounding errors
        damping = 1e-3 * np.einsum("gkk->g", second) / second.shape[1]
        return _lower_factors(second + damping[:, None, None] * np.eye(second.shape[1]))
