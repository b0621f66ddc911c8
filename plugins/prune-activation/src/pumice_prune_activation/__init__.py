"""Activation importance: a channel matters as much as it says something on data.

magnitude  mean |x|
nonzeros   share of positions where x is not zero (network trimming, Hu et al., 2016)
variance   var x: a constant channel could be part of the next layer's bias
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
class Activation(ImportanceScorer):
    """A channel matters as much as it says something on data."""

    name = "activation"
    needs = frozenset({Need.CALIBRATION})
    by: str = knob("magnitude", Choice("magnitude", "nonzeros", "variance"), help="what is measured of a channel")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        x = context.activations(group).astype(np.float64)  # (positions, channels)
        match self.by:
            case "nonzeros":
                return np.asarray((x != 0).mean(axis=0))
            case "variance":
                return np.asarray(x.var(axis=0))
            case _:
                return np.asarray(np.abs(x).mean(axis=0))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Activation
