"""Sequence-level distillation: the student learns the teacher's best sequence as a whole (Kim and Rush, EMNLP 2016).

With y the teacher's best class at every position of a sequence, p its probabilities and q the student's,

    loss = mean over sequences of  c * mean over positions of -log q(y)        c = (mean over positions of p(y))^k

A sequence that the teacher itself is not sure of counts for less, the more so the larger k. Scores are
(N, positions, C), or (N, C) as sequences of one position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import DistillationLoss, Float, Loss, hookimpl, knob
from pumice.distil.loss import Target, number
from pumice.ops.gradient import namespace

Array = NDArray[Any]


@attrs.frozen(kw_only=True)
class Sequence(DistillationLoss):
    """Cross-entropy with the teacher's best sequence, weighted by how sure the teacher is."""

    name = "sequence"
    on_device = True
    confidence: float = knob(1.0, Float(0.0, 10.0), help="power of the teacher's certainty; 0 counts all alike")

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        own, other = (x.reshape(len(x), -1, x.shape[-1]) for x in (student, target.value))
        best = other.argmax(axis=2)[..., None]
        log_q = _log_softmax(own)
        certainty = np.exp(np.take_along_axis(_log_softmax(other.astype(own.dtype)), best, 2)).mean(axis=(1, 2))
        weight = certainty[:, None, None] ** self.confidence / best.size
        value = -(weight * np.take_along_axis(log_q, best, 2)).sum()
        classes = namespace(best).arange(own.shape[-1])
        wanted = (classes == best).astype(log_q.dtype)
        return number(value), (weight * (np.exp(log_q) - wanted)).reshape(student.shape)


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=-1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logarithms


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield Sequence
