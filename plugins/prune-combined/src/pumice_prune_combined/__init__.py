"""Several criteria as one: each ranks the channels of a layer from 0 to 1, and a channel's score is the weighted sum.

    score[c] = sum over scorers of weight * rank(c) / (channels - 1)

Weights that are not given are searched: every scorer alone, then points drawn evenly from the simplex of weights; what
loses least when the model is pruned with it and refitted wins. `auto` stops after the scorers alone: it takes the best
of them. Before anything was tried, all weigh alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import ImportanceScorer, Int, Names, Text, hookimpl, knob
from pumice.errors import KnobError
from pumice.knobs import Several
from pumice.registry import registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pumice.prune.trials import Trials


@attrs.frozen(kw_only=True)
class Combined(ImportanceScorer):
    """Weighted ranks of several scorers."""

    name = "combined"
    chooses = True
    of: tuple[ImportanceScorer, ...] = knob(
        (), Several("importance-scorer"), help="what is combined; every installed scorer that the data suffice for"
    )
    weights: str = knob("", Text("numbers"), help="one weight a scorer, e.g. '0.7 0.3'; searched if empty")
    tries: int = knob(8, Int(0, 1000), help="points of the simplex to try beside the scorers alone")

    def settled(self, trials: Trials) -> ImportanceScorer:
        if self.weights:
            return self
        of = self.of or tuple(trials.candidates())
        points = [*np.eye(len(of)), *np.random.default_rng(0).dirichlet(np.ones(len(of)), self.tries)]
        return trials.best(self._at(of, point) for point in points)

    def _at(self, of: tuple[ImportanceScorer, ...], point: NDArray[np.float64]) -> Combined:
        chosen = point > 0
        weights = " ".join(f"{weight:.2f}" for weight in point[chosen])
        return Combined(of=tuple(s for s, keep in zip(of, chosen, strict=True) if keep), weights=weights)

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        scorers = self.of or tuple(registry().make(ImportanceScorer, name) for name in _plain())
        weights = self._numbers(len(scorers))
        ranks = (_ranks(np.asarray(scorer.score(group, context))) for scorer in scorers)
        return np.asarray(sum(weight * rank for weight, rank in zip(weights, ranks, strict=True)))

    def _numbers(self, count: int) -> list[float]:
        try:
            found = [float(part) for part in self.weights.split()] or [1.0] * count
        except ValueError:
            found = []
        if len(found) != count:
            raise KnobError(f"scorer 'combined' needs {count} weights, one a scorer, not '{self.weights}'")
        return found


@attrs.frozen(kw_only=True)
class Auto(ImportanceScorer):
    """Whichever installed scorer loses least on this model, data and target."""

    name = "auto"
    chooses = True
    among: tuple[str, ...] = knob((), Names(), help="scorers to try; every installed one that the data suffice for")

    def settled(self, trials: Trials) -> ImportanceScorer:
        return trials.best(trials.candidates(self.among))

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        return Combined().score(group, context)


def _plain() -> list[str]:
    """Installed scorers that look at the weights alone."""
    found = registry().strategies(ImportanceScorer.kind)
    return [name for name, scorer in found.items() if not scorer.needs and not getattr(scorer, "chooses", False)]


def _ranks(scores: NDArray[Any]) -> NDArray[np.float64]:
    """0 for the lowest to 1 for the highest; equals share the mean of their places."""
    order = np.sort(scores)
    places = (np.searchsorted(order, scores) + np.searchsorted(order, scores, side="right") - 1) / 2
    return np.asarray(places / max(len(scores) - 1, 1))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Combined
    yield Auto
