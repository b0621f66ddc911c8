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

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute
from pumice.quantize.error_feedback import codes_with_feedback
from pumice.quantize.grids import AffineGrid, CodebookGrid, Grid
from pumice.quantize.parameters import QuantParams

Levels = Callable[[NDArray[np.float64], NDArray[np.float64] | None], tuple[NDArray[np.int8], NDArray[np.float64]]]
"""The integers that weights may be, ascending, and factors of their scales, (groups, outputs): by the weights in units
of these, (groups, outputs, k), and H or None."""
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
    """About the mean of q, (groups, k, 1): products of what is left are not drowned by it in float32."""
    products: NDArray[np.float64] | None = attrs.field(init=False)
    """Sum of (q - centre) (q - centre)^T, (groups, k, k)."""

    def __attrs_post_init__(self) -> None:
        self.exact = np.zeros((self.groups, self.width))
        self.seen = np.zeros((self.groups, self.width))
        self.products = np.zeros((self.groups, self.width, self.width)) if self.second else None

    def update(self, exact: NDArray[np.float32], seen: NDArray[np.float32]) -> None:
        """Take in columns of shape (groups, k, positions)."""
        if not exact.shape[2]:
            return
        self.count += exact.shape[2]
        self.exact += exact.sum(axis=2, dtype=np.float64)
        self.seen += seen.sum(axis=2, dtype=np.float64)
        if self.products is not None:
            if self.centre is None:
                self.centre = seen.mean(axis=2, keepdims=True)
            centred = seen - self.centre
            self.products += np.matmul(centred, centred.transpose(0, 2, 1))

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(E[x], E[q]), each (groups, k)."""
        return self.exact / max(self.count, 1), self.seen / max(self.count, 1)

    def second_moments(self) -> NDArray[np.float64] | None:
        """H for rounding, (groups, k, k), made safe to invert and to trust; None if there is none or it is not finite.

        It is the covariance of q (the mean is left to the bias), drawn towards its diagonal by k / (k + rows), because
        few rows show correlations that are not there; and every input counts at least DAMPING of what the average
        input of the *layer* does, so that weights on inputs that calibration left quiet keep their values.
        """
        if self.products is None or self.centre is None:
            return None
        mean = self.seen / self.count - self.centre[:, :, 0]
        second: NDArray[np.float64] = self.products / self.count
        second -= mean[:, :, None] * mean[:, None, :]
        variances = np.einsum("gkk->gk", second).copy()
        floor = DAMPING * max(float(np.mean(variances)), float(np.finfo(np.float32).tiny))
        trust = self.count / (self.count + self.width)
        second *= trust
        np.einsum("gkk->gk", second)[...] += (1.0 - trust) * variances + floor
        return second if np.isfinite(second).all() else None


def layer_columns(
    node: ir.Node, weight_shape: tuple[int, ...], data: NDArray[Any], most: int | None, padding: int = 0
) -> NDArray[Any]:
    """What the weights of a layer multiply: shape (groups, k, positions).

    Args:
        node: the layer.
        weight_shape: shape of its weights.
        data: what it reads: numbers, or integers whose zero is `padding`.
        most: about how many positions to take, evenly spread; None takes all.
        padding: what a convolution pads with.
    """
    if node.op_type == "Conv":
        each = None if most is None else max(1, most // max(1, data.shape[0]))
        return _patches(node, weight_shape, data, each, padding)
    rows = data.reshape(-1, data.shape[-1])
    return rows[_spread(len(rows), most)].T[None]


def _spread(count: int, most: int | None) -> NDArray[np.int64]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).astype(np.int64))


def _patches(
    node: ir.Node, weight_shape: tuple[int, ...], data: NDArray[Any], most: int | None, padding: int
) -> NDArray[Any]:
    """Convolution patches, (groups, channels per group * kernel size, positions); `most` positions of one image."""
    kernel = weight_shape[2:]
    rank, groups = len(kernel), int(attribute(node, "group", 1))
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    pads = conv_pads(node, kernel, data.shape[2:])
    widths = [(0, 0), (0, 0), *((pads[d], pads[d + rank]) for d in range(rank))]
    padded = np.pad(data, widths, constant_values=padding)
    size = padded.shape[2:]
    counts = [
        max(0, (n - (k - 1) * d - 1) // s + 1) for n, k, d, s in zip(size, kernel, dilations, strides, strict=True)
    ]
    chosen = np.unravel_index(_spread(int(np.prod(counts)), most), counts)
    starts = np.ravel_multi_index(tuple(c * s for c, s in zip(chosen, strides, strict=True)), size)
    taps = np.indices(kernel).reshape(rank, -1)
    offsets = np.ravel_multi_index(tuple(t * d for t, d in zip(taps, dilations, strict=True)), size, mode="clip")
    batch, channels = data.shape[:2]
    picked = np.take(padded.reshape(batch, channels, -1), offsets[:, None] + starts, axis=2)
    grouped = picked.reshape(batch, groups, channels // groups * len(offsets), len(starts))
    return np.asarray(grouped[0] if batch == 1 else grouped.transpose(1, 2, 0, 3).reshape(*grouped.shape[1:3], -1))


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
    second: NDArray[np.float64] | None,
    limit: int,
    allowed: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """GPTQ (`error_feedback`) to integers, for all groups at once; to the nearest where H is not known.

    Args:
        weights: (groups, outputs, k).
        scale: (groups, outputs).
        second: H, (groups, k, k), positive definite.
        limit: integers lie in [-limit, limit].
        allowed: those of them that there are, ascending; None is all.
    """
    each, k = scale[..., None], weights.shape[2]
    grid: Grid = AffineGrid(scale=each, zero=np.zeros((1, 1, 1), np.int32), low=-limit, high=limit, block=k)
    if allowed is not None:
        grid = CodebookGrid(table=allowed[None, None, None].astype(np.float64), scale=each, block=k)
    codes = grid.codes(weights) if second is None else codes_with_feedback(weights, grid, second)
    return (codes if allowed is None else allowed[codes]).astype(np.int8)


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
    levels: Levels | None = None,
) -> RoundedWeights:
    """Integers in [-limit, limit] for the weights of a layer whose scales are already chosen.

    Without moments, or for layers too wide for H, weights are rounded to the nearest integer, of those in `levels`.
    """
    matrix = _as_matrices(node, weights, axis, moments.groups if moments is not None else 1)
    scale = np.broadcast_to(params.scale.astype(np.float64).reshape(-1), (matrix.shape[0] * matrix.shape[1],))
    scale = scale.reshape(matrix.shape[:2])
    second = moments.second_moments() if compensate and moments is not None else None
    allowed = None
    if levels is not None:
        allowed, factors = levels(matrix / scale[..., None], second)
        if params.axis is not None:
            params = attrs.evolve(params, scale=params.scale * factors.reshape(params.scale.shape).astype(np.float32))
            scale = params.scale.astype(np.float64).reshape(scale.shape)
    integers = compensated_rounding(matrix, scale, second, limit, allowed)
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
