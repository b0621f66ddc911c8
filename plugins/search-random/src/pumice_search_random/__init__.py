"""Random search: every knob drawn from its domain, uniformly or on its logarithmic scale.

Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 2012: with few knobs that matter among many,
it finds what a grid of the same size misses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Choice, Flag, Int, Searcher, hookimpl, knob

if TYPE_CHECKING:
    from pumice.knobs import Domain
    from pumice.search import Proposal, Space, Trial


@attrs.frozen(kw_only=True)
class Random(Searcher):
    """Recipes at random."""

    name = "random"
    seed: int = knob(0, Int(0, 1_000_000), help="which of the random courses")

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        source = np.random.default_rng((self.seed, len(history)))
        return space.walk(lambda name, domain: draw(source, domain))


def draw(source: np.random.Generator, domain: Domain) -> Any:
    """A value of a domain."""
    if isinstance(domain, Choice):
        return domain.options[source.integers(len(domain.options))]
    if isinstance(domain, Flag):
        return bool(source.random() < 0.5)
    low, high = domain.low, domain.high  # type: ignore[union-attr]  # the search asks for nothing else
    if domain.log and low > 0:  # type: ignore[union-attr]
        value = math.exp(source.uniform(math.log(low), math.log(high)))
    else:
        value = source.uniform(low, high)
    return min(max(round(value), low), high) if isinstance(domain, Int) else value


@hookimpl
def pumice_searchers() -> Iterator[type[Searcher]]:
    yield Random
