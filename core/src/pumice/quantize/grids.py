"""Grids: the real numbers that weights of few bits may take, and rounding to them.

Weights are matrices (groups, outputs, k): an output is a row of k inputs; the rows of one group multiply the same
inputs. Every `block` consecutive inputs of a row share their parameters.

    affine      value = (code - zero) scale          codes are integers in [low, high]
    codebook    value = table[code] scale            codes are indices; the table is ascending

Whatever rounds weights (to the nearest value, or with error feedback) needs no more than a `Grid`.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.quantize.parameters import SMALLEST_SCALE

Weights = NDArray[np.floating[Any]]
"""(groups, outputs, k)."""
MOST_COMPARISONS = 16
"""Entries of a table that are worth comparing one by one, all weights at once."""
LONG = 256
"""Inputs of a block that are worth a search of its own."""


class Grid(Protocol):
    """Rounding to the nearest allowed value, and back."""

    def codes(self, weights: Weights) -> NDArray[Any]:
        """The nearest code of every weight, in an integer type, shape of `weights`."""
        ...

    def values(self, codes: NDArray[Any]) -> NDArray[Any]:
        """What codes stand for."""
        ...

    def column(self, inputs: NDArray[np.integer[Any]]) -> Self:
        """The grid of one input of each group, for weights of shape (groups, outputs, 1)."""
        ...


def in_blocks(weights: NDArray[Any], block: int) -> NDArray[Any]:
    """(groups, outputs, k) as (groups, outputs, blocks, block); what is missing of the last block repeats its end."""
    *rows, k = weights.shape
    missing = -k % block
    if missing:
        weights = np.concatenate([weights, np.repeat(weights[..., -1:], missing, axis=-1)], axis=-1)
    return weights.reshape(*rows, -1, block)


def spread(parameter: NDArray[Any], block: int, k: int) -> NDArray[Any]:
    """Parameters (groups, outputs, blocks) for every input; those of a single block broadcast as they are."""
    return parameter if parameter.shape[2] == 1 else np.repeat(parameter, block, axis=2)[:, :, :k]


@attrs.frozen(kw_only=True, eq=False)
class AffineGrid:
    """Evenly spaced values."""

    scale: NDArray[np.floating[Any]]
    """(groups, outputs, blocks)."""
    zero: NDArray[np.integer[Any]]
    """The code of zero, of the same shape."""
    low: int
    high: int
    block: int

    @classmethod
    def covering(cls, weights: Weights, *, bits: int, block: int, symmetric: bool, share: Any = 1.0) -> AffineGrid:
        """The grid of `bits` whose ends are the extremes of each block, drawn towards zero to this share of them.

        Symmetric grids have no zero point and leave the lowest of their signed codes unused.
        """
        parts = in_blocks(weights, block)
        top, bottom = np.maximum(parts.max(axis=3), 0.0) * share, np.minimum(parts.min(axis=3), 0.0) * share
        if symmetric:
            high = 2 ** (bits - 1) - 1
            scale = _usable(np.maximum(top, -bottom) / high)
            return cls(scale=scale, zero=np.zeros(scale.shape, np.int32), low=-high, high=high, block=block)
        high = 2**bits - 1
        scale = _usable((top - bottom) / high)
        zero = np.clip(np.rint(-bottom / scale), 0, high).astype(np.int32)
        return cls(scale=scale, zero=zero, low=0, high=high, block=block)

    @property
    def signed(self) -> bool:
        return self.low < 0

    def codes(self, weights: Weights) -> NDArray[Any]:
        k = weights.shape[2]
        levels = np.rint(weights / spread(self.scale, self.block, k))
        return np.asarray(np.clip(levels + spread(self.zero, self.block, k), self.low, self.high), np.int16)

    def values(self, codes: NDArray[Any]) -> NDArray[Any]:
        k = codes.shape[2]
        return np.asarray((codes - spread(self.zero, self.block, k)) * spread(self.scale, self.block, k))

    def column(self, inputs: NDArray[np.integer[Any]]) -> AffineGrid:
        at = (inputs // self.block)[:, None, None]
        return attrs.evolve(self, scale=_along_blocks(self.scale, at), zero=_along_blocks(self.zero, at))


@attrs.frozen(kw_only=True, eq=False)
class CodebookGrid:
    """Any values."""

    table: NDArray[np.floating[Any]]
    """(groups or 1, outputs or 1, blocks or 1, entries), ascending."""
    scale: NDArray[np.floating[Any]]
    """(groups, outputs, 1)."""
    block: int

    @property
    def entries(self) -> int:
        return int(self.table.shape[3])

    def codes(self, weights: Weights) -> NDArray[Any]:
        parts = in_blocks(weights / self.scale, self.block if self.table.shape[2] > 1 else weights.shape[2])
        middles = (self.table[..., 1:] + self.table[..., :-1]) / 2.0
        dtype = np.uint8 if self.entries <= 256 else np.uint16
        if middles.size == self.entries - 1:
            found = np.searchsorted(middles.ravel(), parts).astype(dtype)
        elif self.entries <= MOST_COMPARISONS and parts.shape[3] < LONG:
            found = np.zeros(parts.shape, dtype)
            for number in range(self.entries - 1):
                np.add(found, parts > middles[..., number, None], out=found)
        else:
            found = _searched(np.broadcast_to(middles, (*parts.shape[:3], self.entries - 1)), parts).astype(dtype)
        return found.reshape(*weights.shape[:2], -1)[:, :, : weights.shape[2]]

    def values(self, codes: NDArray[Any]) -> NDArray[Any]:
        parts = in_blocks(codes, self.block if self.table.shape[2] > 1 else codes.shape[2])
        table = np.broadcast_to(self.table, (*parts.shape[:3], self.entries))
        real = np.take_along_axis(table, parts.astype(np.intp), axis=3).reshape(*codes.shape[:2], -1)
        return np.asarray(real[:, :, : codes.shape[2]] * self.scale)

    def column(self, inputs: NDArray[np.integer[Any]]) -> CodebookGrid:
        if self.table.shape[2] == 1:
            return self
        at = (inputs // self.block)[:, None, None, None]
        table = np.broadcast_to(self.table, (len(inputs), *self.table.shape[1:]))
        return attrs.evolve(self, table=np.take_along_axis(table, at, axis=2))


def _along_blocks(parameter: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
    return parameter if parameter.shape[2] == 1 else np.take_along_axis(parameter, at, axis=2)


def _usable(scale: NDArray[Any]) -> NDArray[np.float64]:
    """As float32 will hold it; blocks that are zero, or nearly so, count in ones."""
    rounded = scale.astype(np.float32)
    return np.where(rounded < SMALLEST_SCALE, np.float32(1.0), rounded).astype(np.float64)


def _searched(middles: NDArray[Any], parts: NDArray[Any]) -> NDArray[np.intp]:
    """`searchsorted` block by block."""
    flat = zip(middles.reshape(-1, middles.shape[-1]), parts.reshape(-1, parts.shape[-1]), strict=True)
    return np.stack([np.searchsorted(each, part) for each, part in flat]).reshape(parts.shape)
