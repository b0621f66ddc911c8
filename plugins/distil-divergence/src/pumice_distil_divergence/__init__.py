"""Divergences between the class probabilities of teacher and student, softened by a temperature T.

With z the scores of a position, p = softmax(z_teacher / T) and q = softmax(z_student / T), the loss is T^2 times the
mean over positions of a divergence D, and its gradient T q (g - <q, g>) / positions with g = dD / dq:

    soft-targets     KL(p | q)                              g = -p / q               (Hinton et al., 2015)
    reverse-kl       KL(q | p)                              g = log(q / p)           (Gu et al., ICLR 2024)
    jensen-shannon   b KL(p | m) + (1 - b) KL(q | m)        g = (1 - b) log(q / m)   m = b p + (1 - b) q
    skewed-kl        KL(p | m), m = a p + (1 - a) q         g = -(1 - a) p / m       (Ko et al., ICML 2024)
                     KL(q | m), m = a q + (1 - a) p         g = log(q / m) - a q / m       (reverse)

T^2 keeps gradients of one size as T changes, since those of softened targets shrink with 1 / T^2. The forward
divergence covers whatever the teacher may answer; the reverse one concentrates on what it answers most. Where the
networks end in a softmax, z is the logarithm of the output. Scores are (N, ..., C), or (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Choice, DistillationLoss, Float, Loss, hookimpl, knob
from pumice.distil.loss import Target, number

Array = NDArray[Any]
SMALLEST = 1e-30
"""Least probability that is divided by or whose logarithm is taken."""


@attrs.frozen(kw_only=True)
class _Divergence(DistillationLoss):
    """Base: rows of scores to softened probabilities, and the gradient back through the softmax."""

    on_device = True

    temperature: float = knob(4.0, Float(0.01, 100.0, log=True), help="softens the probabilities; 1 leaves them")
    final_temperature: float = knob(0.0, Float(0.0, 100.0), help="temperature at the end, reached evenly; 0: the same")
    scores: str = knob(
        "auto",
        Choice("auto", "logits", "probabilities"),
        help="what outputs hold; auto looks at the teacher's rows",
    )

    def divergence(self, p: Array, q: Array) -> tuple[Array, Array]:
        """D of every row, (rows, 1), and dD / dq, (rows, C)."""
        raise NotImplementedError

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        t = self.temperature + (self.final_temperature - self.temperature) * progress * (self.final_temperature > 0)
        own, other = _rows(student), _rows(target.value).astype(student.dtype)
        kind = self.scores
        if kind == "auto":
            kind = "probabilities" if _are_distributions(other) else "logits"
        if kind == "logits":
            z, wanted = own, other
        else:
            z, wanted = np.log(np.maximum(own, SMALLEST)), np.log(np.maximum(other, SMALLEST))
        p, q = _softmax(wanted / t), _softmax(z / t)
        value, g = self.divergence(p, q)
        grad = q * (g - (q * g).sum(axis=1, keepdims=True)) * (t / len(q))
        if kind == "probabilities":
            grad /= np.maximum(own, SMALLEST)
        return number(value.mean() * t**2), _unrows(grad, student)


@attrs.frozen(kw_only=True)
class SoftTargets(_Divergence):
    """The teacher's softened probabilities as targets: KL(teacher, student)."""

    name = "soft-targets"

    def divergence(self, p: Array, q: Array) -> tuple[Array, Array]:
        return _kl(p, q), -p / np.maximum(q, SMALLEST)


@attrs.frozen(kw_only=True)
class ReverseKl(_Divergence):
    """KL(student, teacher): the student concentrates on what the teacher finds likely."""

    name = "reverse-kl"
    temperature: float = knob(1.0, Float(0.01, 100.0, log=True), help="softens the probabilities; 1 leaves them")

    def divergence(self, p: Array, q: Array) -> tuple[Array, Array]:
        return _kl(q, p), _log(q) - _log(p)


@attrs.frozen(kw_only=True)
class JensenShannon(_Divergence):
    """Divergence of both from their mixture: bounded, between forward and reverse."""

    name = "jensen-shannon"
    beta: float = knob(0.5, Float(0.01, 0.99), help="share of the teacher in the mixture; near 0 it is like forward KL")

    def divergence(self, p: Array, q: Array) -> tuple[Array, Array]:
        b = self.beta
        m = b * p + (1 - b) * q
        return b * _kl(p, m) + (1 - b) * _kl(q, m), (1 - b) * (_log(q) - _log(m))


@attrs.frozen(kw_only=True)
class SkewedKl(_Divergence):
    """KL from a mixture of both: gradients stay small where the student gives no probability."""

    name = "skewed-kl"
    skew: float = knob(0.1, Float(0.0, 0.99), help="share of the first distribution that is mixed into the second")
    direction: str = knob("forward", Choice("forward", "reverse"), help="forward covers the teacher, reverse seeks it")

    def divergence(self, p: Array, q: Array) -> tuple[Array, Array]:
        a = self.skew
        if self.direction == "forward":
            m = a * p + (1 - a) * q
            return _kl(p, m), -(1 - a) * p / np.maximum(m, SMALLEST)
        m = a * q + (1 - a) * p
        return _kl(q, m), _log(q) - _log(m) - a * q / np.maximum(m, SMALLEST)


def _kl(p: Array, q: Array) -> Array:
    total: Array = (p * (_log(p) - _log(q))).sum(axis=1, keepdims=True)
    return total


def _log(p: Array) -> Array:
    logarithm: Array = np.log(np.maximum(p, SMALLEST))
    return logarithm


def _softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _rows(scores: Array) -> Array:
    """(positions, classes)."""
    last = np.moveaxis(scores, 1, -1) if scores.ndim > 3 else scores
    return last.reshape(-1, last.shape[-1])


def _unrows(rows: Array, like: Array) -> Array:
    if like.ndim <= 3:
        return rows.reshape(like.shape)
    return np.moveaxis(rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]), -1, 1)


def _are_distributions(rows: Array) -> bool:
    return bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=1) - 1) < 1e-3))


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield from (SoftTargets, ReverseKl, JensenShannon, SkewedKl)
