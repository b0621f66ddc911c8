"""Reconstruction importance: a channel matters as much as its readers would miss it *after* least squares.

A weight W reads channels x with second moments H = E[(x - Ex)(x - Ex)^T]. Without the channels S, and with the rest
refitted, its output is off by tr(W_S^T (H^-1_SS)^-1 W_S) (optimal brain surgeon; Hassibi and Stork, 1992). Channels are
taken away one by one, the cheapest first, and what is left is refitted in thought each time:

    cost of c   ||W_c||^2 / [H^-1]_cc
    then        W <- W - H^-1_:c W_c / [H^-1]_cc,     H^-1 <- H^-1 - H^-1_:c H^-1_c: / [H^-1]_cc

relative to the energy tr(W^T H W) of the output, summed over all readers. The score of a channel is the highest cost up
to its turn, so that the order of removal is the order of scores, and scores of all layers are on one scale. It belongs
with `recover = "least-squares"` and needs no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import ImportanceScorer, Need, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class Reconstruction(ImportanceScorer):
    """A channel matters as much as least squares cannot make up for it."""

    name = "reconstruction"
    normalise = "none"
    needs = frozenset({Need.CALIBRATION})

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        readers = [_Reader.of(x, weight) for x, weight in context.readers(group)]
        count = len(context.weights(group))
        scores, highest = np.full(count, np.inf), 0.0
        for _ in range(count if readers else 0):
            costs = np.where(np.isinf(scores), sum(reader.costs() for reader in readers), np.inf)
            cheapest = int(np.argmin(costs))
            highest = max(highest, float(costs[cheapest]))
            scores[cheapest] = highest
            for reader in readers:
                reader.remove(cheapest)
        return scores if readers else np.zeros(count)


@attrs.define(eq=False)
class _Reader:
    inverse: NDArray[np.float64]
    """H^-1 of the channels that are left; rows and columns of the others are those of the identity."""
    weight: NDArray[np.float64]
    """(channels, weights per channel)."""
    energy: float

    @classmethod
    def of(cls, x: NDArray[Any], weight: NDArray[Any]) -> _Reader:
        from pumice.prune.reconstruction import moments

        wide, found = weight.astype(np.float64), moments(x.astype(np.float64) - x.mean(axis=0))
        return cls(np.linalg.inv(found), wide, float(np.sum(wide * (found @ wide))) or 1.0)

    def costs(self) -> NDArray[np.float64]:
        return np.asarray((self.weight**2).sum(axis=1) / np.diag(self.inverse) / self.energy)

    def remove(self, channel: int) -> None:
        column = self.inverse[:, channel] / self.inverse[channel, channel]
        self.weight -= np.outer(column, self.weight[channel])
        self.inverse -= np.outer(column, self.inverse[channel])
        self.inverse[channel, channel] = 1.0


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Reconstruction
