"""Rescaling: recognising that channels were scaled, which is no error, before errors are measured.

Equalisation divides a layer's output channels by positive factors and multiplies the weights that read them by the
same ones; the function is unchanged. So compressed weights may be a[o] b[i] W[o, i] plus the real error. Factors are
fitted by alternating least squares, a[o] = sum_i b N / sum_i b^2 D with N = sum W W', D = sum W^2 over the window (and
the same for b), and undone if that explains at least half of what looked like noise. Outputs are treated likewise,
with one gain per channel over all samples.
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


@attrs.define
class GainFit:
    """The gain of every channel of a layer's output, streamed: exact ~ gain * approximate."""

    op: str
    crossed: Array | float = 0.0
    squared: Array | float = 0.0
    exact_squared: Array | float = 0.0
    noise: float = 0.0

    def update(self, exact: Array, approximate: Array) -> None:
        if exact.shape != approximate.shape or exact.ndim < 2:
            return
        x, y = (by_channel(a.astype(np.float64), self.op) for a in (exact, approximate))
        self.crossed = self.crossed + (x * y).sum(axis=1)
        self.squared = self.squared + (y * y).sum(axis=1)
        self.exact_squared = self.exact_squared + (x * x).sum(axis=1)
        self.noise += float(((x - y) ** 2).sum())

    def gain(self) -> Array | None:
        """Shape (channels,); None if the channels were not rescaled."""
        crossed, squared = np.asarray(self.crossed), np.asarray(self.squared)
        if not crossed.ndim or not (squared > 0).any():
            return None
        gain = _ratio(crossed, squared)
        left = float(np.sum(np.asarray(self.exact_squared) - gain * crossed))
        explained = self.noise > 0 and left <= self.noise * 10 ** (-GAIN_DB / 10)
        return np.where(gain > 0, gain, 1.0) if explained else None


def by_channel(values: Array, op: str) -> Array:
    """Shape (channels, everything else): channels are on axis 1 of a convolution, on the last axis elsewhere."""
    moved = np.moveaxis(values, 1 if op == "Conv" else -1, 0)
    return moved.reshape(len(moved), -1)


def with_gain(values: Array, gain: Array | None, op: str) -> Array:
    """`values` with every channel multiplied by its gain."""
    if gain is None:
        return values
    shape = [1] * values.ndim
    shape[1 if op == "Conv" else -1] = len(gain)
    return np.asarray(values * gain.reshape(shape))
