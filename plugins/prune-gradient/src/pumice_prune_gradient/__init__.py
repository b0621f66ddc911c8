"""Gradient importance: a channel matters as much as training still pulls at its weights.

With g the gradient of the loss, averaged over samples: score[c] = ||g[c]||. A channel whose weights could move without
the loss noticing is one that the loss does not depend on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Choice, ImportanceScorer, Need, hookimpl, knob

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class Gradient(ImportanceScorer):
    """A channel matters as much as training still pulls at it."""

    name = "gradient"
    needs = frozenset({Need.CALIBRATION, Need.LABELS, Need.GRADIENTS})
    norm: str = knob("l2", Choice("l1", "l2"), help="how the gradients of a channel's weights are summed")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        gradients = context.gradients(group)  # (channels, weights per channel)
        return np.asarray(np.linalg.norm(gradients, ord={"l1": 1, "l2": 2}[self.norm], axis=1))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Gradient
