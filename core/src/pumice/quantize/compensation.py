"""Rounding weights so that the layer's output, not the weights, stays close.

A layer computes y = W x. Rounding every weight to the nearest integer minimises ||W - Q||, but what matters is
E||(W - Q) x||^2 = tr((W - Q) H (W - Q)^T) with H = E[x x^T]. GPTQ (Frantar et al., ICLR 2023) rounds one input column
at a time and moves its error onto the columns still to come, through the Cholesky factor of H^-1. What is left of the
mean error is removed by the bias.

The layer will not see x but its quantized form q, so H is taken over q, and the bias also removes what rounding the
inputs shifts: b' = b + W E[x] - Q E[q]. `Moments` streams both means and H; a convolution is the matrix product of its
patches.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute
from pumice.quantize.parameters import QuantParams

ROWS = 32768
"""Rows that the moments of a layer are made of, about: evenly spread over the samples and their positions."""
DAMPING = 0.01
"""Least weight of an input in H, as a share of the mean input's."""
WIDEST = 4800
"""Largest number of inputs per output for which H is kept (float64: 8 * WIDEST^2 bytes)."""


@attrs.define(eq=False)
class Moments:
    """Moments of the inputs of one layer, group by group: as they are (x) and as the integer layer sees them (q)."""

    groups: int
    width: int
    """Inputs per output, k."""
    second: bool
    """Whether H is kept."""
    count: int = 0
    exact: NDArray[np.float64] = attrs.field(init=False)
    """Sum of x, (groups, k)."""
    seen: NDArray[np.float64] = attrs.field(init=False)
    """Sum of q, (groups, k)."""
    centre: NDArray[np.float32] | None = None
    """About the mean of q, (groups, 1, k): products of what is left are not drowned by it in float32."""
    products: NDArray[np.float64] | None = attrs.field(init=False)
    """Sum of (q - centre) (q - centre)^T, (groups, k, k)."""

    def __attrs_post_init__(self) -> None:
        self.exact = np.zeros((self.groups, self.width))
        self.seen = np.zeros((self.groups, self.width))
        self.products = np.zeros((self.groups, self.width, self.width)) if self.second else None

    def update(self, exact: NDArray[np.float32], seen: NDArray[np.float32]) -> None:
        """Take in rows of shape (groups, positions, k)."""
        if not exact.shape[1]:
            return
        self.count += exact.shape[1]
        self.exact += exact.sum(axis=1, dtype=np.float64)
        self.seen += seen.sum(axis=1, dtype=np.float64)
        if self.products is not None:
            if self.centre is None:
                self.centre = seen.mean(axis=1, keepdims=True)
            centred = seen - self.centre
            self.products += np.matmul(centred.transpose(0, 2, 1), centred)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(E[x], E[q]), each (groups, k)."""
        return self.exact / max(self.count, 1), self.seen / max(self.count, 1)

    def second_moment(self, group: int) -> NDArray[np.float64] | None:
        """H for rounding one group, made safe to invert and to trust; None if there is none or it is not finite.

        It is the covariance of q (the mean is left to the bias), drawn towards its diagonal by k / (k + rows), because
        few rows show correlations that are not there; and every input counts at least DAMPING of what the average
        input of the *layer* does, so that weights on inputs that calibration left quiet keep their values.
        """
        if self.products is None or self.centre is None:
            return None
        mean = self.seen[group] / self.count - self.centre[group, 0]
        covariance = self.products[group] / self.count - np.outer(mean, mean)
        diagonal = np.diag(np.diag(covariance))
        trust = self.count / (self.count + self.width)
        floor = DAMPING * max(self._energy(), float(np.finfo(np.float32).tiny))
        second: NDArray[np.float64] = trust * covariance + (1.0 - trust) * diagonal + floor * np.eye(self.width)
        return second if np.isfinite(second).all() else None

    def _energy(self) -> float:
        """Mean variance of the layer's inputs, over all groups."""
        assert self.products is not None
        assert self.centre is not None
        squares = np.einsum("gkk->gk", self.products) / self.count
        return float(np.mean(squares - (self.seen / self.count - self.centre[:, 0]) ** 2))


def layer_rows(
    node: ir.Node, weight_shape: tuple[int, ...], data: NDArray[Any], most: int | None, padding: int = 0
) -> NDArray[Any]:
    """What the weights of a layer multiply: shape (groups, positions, k).

    Args:
        node: the layer.
        weight_shape: shape of its weights.
        data: what it reads: numbers, or integers whose zero is `padding`.
        most: about how many positions to take, evenly spread; None takes all.
        padding: what a convolution pads with.
    """
    if node.op_type != "Conv":
        return _spread(data.reshape(-1, data.shape[-1]), most)[None]
    each = None if most is None else max(1, most // max(1, data.shape[0]))
    return _patches(node, weight_shape, data, each, padding)


def _spread(rows: NDArray[Any], most: int | None) -> NDArray[Any]:
    return rows if most is None or len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _patches(
    node: ir.Node, weight_shape: tuple[int, ...], data: NDArray[Any], most: int | None, padding: int
) -> NDArray[Any]:
    """Convolution patches, (groups, positions, channels per group * kernel size); `most` positions of one image."""
    kernel = weight_shape[2:]
    rank, groups = len(kernel), int(attribute(node, "group", 1))
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    pads = conv_pads(node, kernel, data.shape[2:])
    widths = [(0, 0), (0, 0), *((pads[d], pads[d + rank]) for d in range(rank))]
    padded = np.pad(data, widths, constant_values=padding)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + rank))
    if any(have < need for have, need in zip(padded.shape[2:], reach, strict=True)):
        return np.empty((groups, 0, int(np.prod(weight_shape[1:]))), data.dtype)
    steps = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
    windows: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)[tuple(steps)]
    batch, channels = data.shape[:2]
    spatial = windows.shape[2 : 2 + rank]
    positions = int(np.prod(spatial))
    chosen = np.unique(np.linspace(0, positions - 1, min(positions, most or positions)).astype(np.int64))
    where: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(chosen, spatial))
    picked = windows[where]
    picked = picked.reshape(batch, groups, channels // groups, len(chosen), -1)
    return np.ascontiguousarray(picked.transpose(1, 0, 3, 2, 4).reshape(groups, batch * len(chosen), -1))


def conv_pads(node: ir.Node, kernel: tuple[int, ...], spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Pads (begin..., end...) of a convolution, `auto_pad` resolved."""
    rank = len(kernel)
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return tuple(attribute(node, "pads", (0,) * 2 * rank))
    if auto == "VALID":
        return (0,) * 2 * rank
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    total = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return tuple((*small, *large) if auto == "SAME_UPPER" else (*large, *small))


def compensated_rounding(
    weights: NDArray[np.float64],
    scale: NDArray[np.float64],
    second: NDArray[np.float64],
    limit: int,
) -> NDArray[np.int8]:
    """GPTQ. `weights` (outputs, k), `scale` (outputs,), `second` H of shape (k, k); integers in [-limit, limit].

    Columns are visited by falling H[j, j] (what matters most is rounded while there is most freedom left to repair it).
    It is greedy: an output that is better off with the nearest integers gets those.
    """
    nearest = np.clip(np.rint(weights / scale[:, None]), -limit, limit)
    compensated = _rounded_in_turn(weights, scale, second, limit)
    worse = _output_error(weights - compensated * scale[:, None], second) > _output_error(
        weights - nearest * scale[:, None], second
    )
    return np.where(worse[:, None], nearest, compensated).astype(np.int8)


def _output_error(difference: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """d H d^T of every row, shape (outputs,)."""
    return np.asarray(np.einsum("ok,ok->o", difference @ second, difference))


def _rounded_in_turn(
    weights: NDArray[np.float64], scale: NDArray[np.float64], second: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    order = np.argsort(-np.diag(second), kind="stable")
    upper = _upper_factor(second[np.ix_(order, order)])
    working = weights[:, order].copy()
    integers = np.empty(working.shape)
    for start in range(0, working.shape[1], 128):
        stop = min(start + 128, working.shape[1])
        errors = np.empty((len(working), stop - start))
        for j in range(start, stop):
            rounded = np.clip(np.rint(working[:, j] / scale), -limit, limit)
            integers[:, j] = rounded
            errors[:, j - start] = (working[:, j] - rounded * scale) / upper[j, j]
            working[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        working[:, stop:] -= errors @ upper[start:stop, stop:]
    restored = np.empty_like(integers)
    restored[:, order] = integers
    return restored


def _upper_factor(second: NDArray[np.float64]) -> NDArray[np.float64]:
    """U upper triangular with H^-1 = U^T U: the inverse of R, where H = R R^T with R upper triangular.

    R is the Cholesky factor of H with its axes reversed, reversed again.
    """
    from scipy.linalg.lapack import dtrtri

    reversed_axes = second[::-1, ::-1]
    try:
        lower = np.linalg.cholesky(reversed_axes)
    except np.linalg.LinAlgError:  # correlated up to rounding errors
        damping = 1e-3 * float(np.mean(np.diag(second)))
        return _upper_factor(second + damping * np.eye(len(second)))
    inverse, _ = dtrtri(lower[::-1, ::-1], lower=0)
    return np.asarray(inverse)


@attrs.frozen(eq=False)
class RoundedWeights:
    """Integers of a layer, in its own weight shape, and what to add to its bias (outputs,)."""

    integers: NDArray[np.int8]
    params: QuantParams
    shift: NDArray[np.float64]


def round_weights(
    node: ir.Node,
    weights: NDArray[np.float64],
    axis: int,
    params: QuantParams,
    moments: Moments | None,
    *,
    limit: int,
    compensate: bool,
    correct_bias: bool,
) -> RoundedWeights:
    """Integers in [-limit, limit] for the weights of a layer whose scales are already chosen.

    Without moments, or for layers too wide for H, weights are rounded to the nearest integer.
    """
    groups = moments.groups if moments is not None else 1
    matrix = _as_matrices(node, weights, axis, groups)
    scale = np.broadcast_to(params.scale.astype(np.float64).reshape(-1), (matrix.shape[0] * matrix.shape[1],))
    scale = scale.reshape(matrix.shape[:2])
    integers = np.empty(matrix.shape, np.int8)
    for group in range(groups):
        second = moments.second_moment(group) if compensate and moments is not None else None
        if second is None:
            integers[group] = np.clip(np.rint(matrix[group] / scale[group][:, None]), -limit, limit)
        else:
            integers[group] = compensated_rounding(matrix[group], scale[group], second, limit)
    shift = np.zeros(matrix.shape[0] * matrix.shape[1])
    if correct_bias and moments is not None and moments.count:
        exact, seen = moments.means()
        rounded = integers * scale[..., None]
        shift = (np.einsum("gok,gk->go", matrix, exact) - np.einsum("gok,gk->go", rounded, seen)).reshape(-1)
    return RoundedWeights(_from_matrices(node, integers, weights.shape, axis), params, shift)


def _as_matrices(node: ir.Node, weights: NDArray[np.float64], axis: int, groups: int) -> NDArray[np.float64]:
    """Weights as (groups, outputs per group, k)."""
    if node.op_type == "Conv":
        return weights.reshape(groups, weights.shape[0] // groups, -1)
    return (weights if axis == 0 else weights.T)[None]


def _from_matrices(node: ir.Node, matrices: NDArray[np.int8], shape: tuple[int, ...], axis: int) -> NDArray[np.int8]:
    if node.op_type == "Conv":
        return matrices.reshape(shape)
    return np.ascontiguousarray(matrices[0] if axis == 0 else matrices[0].T)
