"""Rescaling: recognising that channels were scaled, which is no error, before errors are measured.

Equalisation divides a layer's output channels by positive factors and multiplies the weights that read them by the
same ones; the function is unchanged. So compressed weights may be a[o] b[i] W[o, i] plus the real error. Factors are
fitted by alternating least squares, a[o] = sum_i b N / sum_i b^2 D with N = sum W W', D = sum W^2 over the window (and
the same for b), and undone if that explains at least half of what looked like noise. Outputs are treated likewise,
with one factor and one offset a channel over all samples: values may be stored about the middle of their range.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.diagnose.decibels import sqnr_of
from pumice.model import attribute

GAIN_DB = 3.0
"""Improvement from which on channels count as rescaled."""
_ROUNDS = 8
MANY = 64
"""Numbers of a channel that show a gain by themselves."""

Array = NDArray[Any]


def undo_in_weights(node: ir.Node, exact: Array, approximate: Array) -> Array | None:
    """The compressed weights with the channel factors taken out; None if channels were not rescaled.

    `exact` and `approximate` have the shape of the weights of `node`.
    """
    axes = _channel_axes(node, exact.ndim)
    if axes is None:
        return None
    before, after = (_as_matrix(w.astype(np.float64), *axes) for w in (exact, approximate))
    products, squares = (before * after).sum(axis=2), (before * before).sum(axis=2)
    outputs, inputs = np.ones(len(before)), np.ones(before.shape[1])
    for _ in range(_ROUNDS):
        outputs = _ratio(products @ inputs, squares @ (inputs * inputs))
        inputs = _ratio(outputs @ products, (outputs * outputs) @ squares)
    factors = outputs[:, None, None] * inputs[None, :, None]
    if (factors <= 0).any():
        return None
    undone = _from_matrix(after / factors, exact.shape, *axes)
    raw, scaled = sqnr_of(exact, approximate), sqnr_of(exact, undone)
    return undone if raw is not None and scaled is not None and scaled >= raw + GAIN_DB else None


def _channel_axes(node: ir.Node, rank: int) -> tuple[int, int] | None:
    """Output and input axis of the weights."""
    match node.op_type:
        case "Conv" if rank > 2:
            return 0, 1
        case "Gemm":
            return (0, 1) if attribute(node, "transB", 0) else (1, 0)
        case "MatMul" if rank == 2:
            return 1, 0
        case _:
            return None


def _as_matrix(weights: Array, output: int, input_: int) -> Array:
    """Shape (outputs, inputs, window)."""
    moved = np.moveaxis(weights, (output, input_), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)


def _from_matrix(matrix: Array, shape: tuple[int, ...], output: int, input_: int) -> Array:
    rest = [n for axis, n in enumerate(shape) if axis not in {output, input_}]
    return np.moveaxis(matrix.reshape(*matrix.shape[:2], *rest), (0, 1), (output, input_))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """A channel whose weights are all zero keeps the factor 1."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), 1.0)


@attrs.frozen(eq=False)
class Gain:
    """How the channels of a value were rescaled: exact = factor * stored + offset, each (channels,)."""

    factor: Array
    offset: Array


@attrs.define
class GainFit:
    """The gain of every channel of a layer's output by least squares, streamed."""

    op: str
    least: int = 1
    """Numbers of a channel that it takes to believe in a gain: a few points lie on many lines."""
    count: int = 0
    """Numbers of a channel."""
    exact: Array | float = 0.0
    approximate: Array | float = 0.0
    crossed: Array | float = 0.0
    squared: Array | float = 0.0
    exact_squared: Array | float = 0.0
    noise: float = 0.0

    def update(self, exact: Array, approximate: Array) -> None:
        if exact.shape != approximate.shape or exact.ndim < 2:
            return
        x, y = (by_channel(a.astype(np.float64), self.op) for a in (exact, approximate))
        self.count += x.shape[1]
        self.exact, self.approximate = self.exact + x.sum(axis=1), self.approximate + y.sum(axis=1)
        self.crossed = self.crossed + (x * y).sum(axis=1)
        self.squared = self.squared + (y * y).sum(axis=1)
        self.exact_squared = self.exact_squared + (x * x).sum(axis=1)
        self.noise += float(((x - y) ** 2).sum())

    def gain(self) -> Gain | None:
        """None if the channels were not rescaled."""
        x, y, count = np.asarray(self.exact), np.asarray(self.approximate), max(self.count, 1)
        spread = np.asarray(self.squared) - y * y / count
        if self.count < self.least or not spread.ndim or not (spread > 0).any():
            return None
        crossed = np.asarray(self.crossed) - x * y / count
        factor = _ratio(crossed, spread)
        left = float(np.sum(np.asarray(self.exact_squared) - x * x / count - factor * crossed))
        if not (self.noise > 0 and left <= self.noise * 10 ** (-GAIN_DB / 10)):
            return None
        factor = np.where(factor > 0, factor, 1.0)
        return Gain(factor, (x - factor * y) / count)


def by_channel(values: Array, op: str) -> Array:
    """Shape (channels, everything else): channels are on axis 1 of a convolution, on the last axis elsewhere."""
    moved = np.moveaxis(values, 1 if op == "Conv" else -1, 0)
    return moved.reshape(len(moved), -1)


def with_gain(values: Array, gain: Gain | None, op: str) -> Array:
    """Stored values as the original has them."""
    if gain is None:
        return values
    return np.asarray(values * _along(gain.factor, values, op) + _along(gain.offset, values, op))


def without_gain(values: Array, gain: Gain | None, op: str) -> Array:
    """The original's values as they are stored."""
    if gain is None:
        return values
    return np.asarray((values - _along(gain.offset, values, op)) / _along(gain.factor, values, op))


def _along(vector: Array, values: Array, op: str) -> Array:
    shape = [1] * values.ndim
    shape[1 if op == "Conv" else -1] = len(vector)
    return vector.reshape(shape)
