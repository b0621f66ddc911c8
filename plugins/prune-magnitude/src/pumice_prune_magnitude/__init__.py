"""Magnitude (Li et al., ICLR 2017): a channel matters as much as its weights are large.

score[c] = ||w[c]||
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Choice, ImportanceScorer, hookimpl, knob

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class Magnitude(ImportanceScorer):
    """A channel matters as much as its weights are large."""

    name = "magnitude"
    norm: str = knob("l2", Choice("l1", "l2"), help="how the weights of a channel are summed")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        filters = context.weights(group)  # (channels, weights per channel)
        return np.asarray(np.linalg.norm(filters, ord={"l1": 1, "l2": 2}[self.norm], axis=1))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Magnitude
