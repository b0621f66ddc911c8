"""Grid search: every combination, in the order of the space, numbers cut into a few points.

The walk is a tree whose branches are the values of its knobs. The grid goes through its leaves depth first; which leaf
is next follows from the trials so far, so nothing is kept between proposals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Choice, Flag, Int, Searcher, hookimpl, knob

if TYPE_CHECKING:
    from pumice.knobs import Domain
    from pumice.search import Proposal, Space, Trial


@attrs.frozen(kw_only=True)
class Grid(Searcher):
    """Every recipe of a grid."""

    name = "grid"
    points: int = knob(3, Int(2, 100), help="values that a number is cut into")

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        tried = {tuple(trial.values.items()) for trial in history}
        return next((leaf for leaf in self.leaves(space) if tuple(leaf.values.items()) not in tried), None)

    def leaves(self, space: Space) -> Iterator[Proposal]:
        """All proposals: a path of branch numbers is followed, then counted up like an odometer."""
        path: list[int] = []
        while True:
            widths: list[int] = []

            def choose(name: str, domain: Domain, widths: list[int] = widths, path: Sequence[int] = tuple(path)) -> Any:
                values = self.values(domain)
                at = path[len(widths)] if len(widths) < len(path) else 0
                widths.append(len(values))
                return values[at]

            yield space.walk(choose)
            path += [0] * (len(widths) - len(path))
            while path and path[-1] + 1 == widths[len(path) - 1]:
                path.pop()
            if not path:
                return
            path[-1] += 1

    def values(self, domain: Domain) -> list[Any]:
        """The values of a domain that the grid has."""
        if isinstance(domain, Choice):
            return list(domain.options)
        if isinstance(domain, Flag):
            return [False, True]
        low, high = domain.low, domain.high  # type: ignore[union-attr]  # the search asks for nothing else
        spread = np.geomspace if domain.log and low > 0 else np.linspace  # type: ignore[union-attr]
        values = spread(low, high, self.points).tolist()
        return sorted({round(v) for v in values}) if isinstance(domain, Int) else values


@hookimpl
def pumice_searchers() -> Iterator[type[Searcher]]:
    yield Grid
