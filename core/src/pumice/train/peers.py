"""Data-parallel training: processes that train one network together, each on its part of every batch.

The gradient of a mean over a batch is the sum of those of its parts, each weighted by its share of the samples. So
every process computes its part's, all are added up, and since all begin alike and move by the same sums they stay
alike. Every process draws the same batches and takes rows [n rank / count, n (rank + 1) / count) of n. Batch
normalisation sees a part only; its running statistics are averaged over the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from pumice.errors import DataError
from pumice.train.feeding import Portion


class Peers(Protocol):
    """The processes that train together, seen from one of them."""

    rank: int
    """Of this one, from 0."""
    count: int

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The sums over all processes, the same bits in each; all must ask for the same names in the same order."""


def part(portion: Portion, peers: Peers) -> Portion:
    """The samples of this process.

    Raises:
        DataError: there are fewer samples than processes, or they are mixed with each other.
    """
    batch = portion.batch
    if batch.size < peers.count:
        raise DataError(
            f"a batch of {batch.size} samples cannot be shared by {peers.count} GPUs: raise the knob 'batch'"
        )
    if portion.mixed is not None:
        raise DataError("mixup pairs samples that lie on different GPUs: leave it out of 'augment', or use one GPU")
    start, stop = (batch.size * rank // peers.count for rank in (peers.rank, peers.rank + 1))
    feeds = {name: x[start:stop] for name, x in batch.feeds.items()}
    return attrs.evolve(
        portion, batch=attrs.evolve(batch, feeds=feeds, labels=batch.labels[start:stop], size=stop - start)
    )
