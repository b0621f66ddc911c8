"""Taylor (Molchanov et al., CVPR 2019): how much the loss would change without a channel, to first order.

With the gradient g of the loss, taking away the weights w of a channel changes the loss by about -sum(g w):

    gate      (sum over the weights of g w)^2       the channel as a whole, as if by a gate of one
    weight    sum over the weights of (g w)^2       its weights one by one
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
class Taylor(ImportanceScorer):
    """How much the loss would change without a channel, to first order."""

    name = "taylor"
    needs = frozenset({Need.CALIBRATION, Need.LABELS, Need.GRADIENTS})
    of: str = knob("gate", Choice("gate", "weight"), help="what the change of the loss is taken over")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        weights, gradients = context.weights(group), context.gradients(group)  # both (channels, weights per channel)
        change = weights.astype(np.float64) * gradients
        return np.asarray(change.sum(axis=1) ** 2 if self.of == "gate" else (change**2).sum(axis=1))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Taylor
