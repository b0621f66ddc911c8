"""Random importance: the baseline of every other scorer.

A channel's score is drawn from its own weights and the seed, so that it belongs to the channel, wherever it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import ImportanceScorer, Int, hookimpl, knob

if TYPE_CHECKING:
    from numpy.typing import NDArray


@attrs.frozen(kw_only=True)
class Random(ImportanceScorer):
    """Channels in random order."""

    name = "random"
    draw: int = knob(0, Int(0, 1_000_000), help="which of the random orders")

    def score(self, group: Any, context: Any) -> NDArray[np.floating[Any]]:
        salt = f"{self.draw},{getattr(context, 'seed', 0)}".encode()
        return np.array([_uniform(salt, row.tobytes()) for row in context.weights(group)])


def _uniform(salt: bytes, content: bytes) -> float:
    """A number in [0, 1) that depends on every bit of the content."""
    return int.from_bytes(hashlib.sha256(salt + content).digest()[:6], "little") / 2**48


@hookimpl
def pumice_importance_scorers() -> Iterator[type[ImportanceScorer]]:
    yield Random
