"""FPGM (He et al., CVPR 2019): a filter near the geometric median of its layer is replaceable by the others.

score[c] = sum over d of ||w[c] - w[d]||
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
class Fpgm(ImportanceScorer):
    """A filter near the others is replaceable by them."""

    name = "fpgm"
    norm: str = knob("l2", Choice("l1", "l2"), help="distance between filters")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        filters = context.weights(group)  # (channels, weights per channel)
        return np.asarray(context.pairwise_distances(filters, self.norm).sum(axis=1))


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Fpgm
