"""The objective of a distillation: a weighted sum of what the teacher and what the labels ask for.

    loss = a * sum over losses of w_j(t) L_j(student, teacher)  +  (1 - a) * L(student, labels)

with w_j(t) the weight of a loss until it is switched off, zero afterwards, and t the share of the training behind. It
is a loss itself, so the trainer need not know. A batch that the student has generated has no labels, and only losses on
samples see it. Loss scaling is the trainer's: a student in float16 has its gradients
multiplied before they become narrow and divided afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from numpy.typing import NDArray

from pumice.distil.attribution import Attribution
from pumice.distil.connectors import Connection
from pumice.distil.loss import DistillationLoss, SampledLoss, Target, TaughtBatch
from pumice.distil.teacher import Answers
from pumice.strategy import Loss

Array = NDArray[Any]


@attrs.frozen(eq=False)
class Term:
    """One loss, and what it compares."""

    loss: DistillationLoss
    connections: tuple[Connection, ...]

    @property
    def sampled(self) -> bool:
        """Whether it compares on what the student generates."""
        return isinstance(self.loss, SampledLoss)

    def active(self, progress: float) -> bool:
        return self.loss.weight > 0 and progress < self.loss.until


@attrs.define(kw_only=True, eq=False)
class Sum:
    """Values and gradients added up."""

    value: float = 0.0
    grads: dict[str, Array] = attrs.field(factory=dict)

    def add(self, share: float, value: float, grads: Mapping[str, Array]) -> None:
        self.value += share * value
        for name, grad in grads.items():
            self.grads[name] = self.grads[name] + share * grad if name in self.grads else share * grad


@attrs.frozen(kw_only=True, eq=False)
class Distillation(Loss):
    """The weighted sum of distillation losses and a loss on labels."""

    name = "distillation"
    terms: tuple[Term, ...]
    answers: Answers
    """Of the teacher."""
    alpha: float = 1.0
    """Share of the teacher; the labels have the rest."""
    labels: Loss | None = None
    outputs: tuple[str, ...] = ()
    """Of the student: what the loss on labels is given."""
    attribution: Attribution | None = None
    progress: Callable[[], float] = lambda: 0.0
    """The share of the training that is behind."""

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        found, progress = Sum(), self.progress()
        samples = getattr(batch, "samples", None)
        active = [term for term in self.terms if term.active(progress) and term.sampled == (samples is not None)]
        answers = self.answers.run(batch.feeds) if active else {}
        for term in active:
            taught = TaughtBatch(
                targets=self._targets(term, answers, batch.feeds),
                progress=progress,
                feeds=batch.feeds,
                labels=batch.labels,
                size=batch.size,
                samples=samples,
            )
            found.add(self.alpha * term.loss.weight, *term.loss.value_and_grad(outputs, taught))
        if self.labels is not None and self.alpha < 1 and samples is None:
            own = {name: outputs[name] for name in self.outputs}
            found.add(1 - self.alpha, *self.labels.value_and_grad(own, batch))
        return found.value, found.grads

    def _targets(self, term: Term, answers: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Target]:
        matters: Mapping[str, Array] = {}
        if term.loss.attribution and self.attribution is not None:
            values = {name: answers[name] for name in self.attribution.probes}
            matters = self.attribution.run(feeds, values, term.loss.attribution)
        return {
            each.student: Target(
                each.seen(answers[each.teacher]),
                each.seen(matters[each.teacher]) if each.teacher in matters else None,
                feeds[term.loss.mask] if term.loss.mask else None,
            )
            for each in term.connections
        }


def asked_for(terms: Sequence[Term]) -> list[str]:
    """The teacher's values that some term compares."""
    return list(dict.fromkeys(each.teacher for term in terms for each in term.connections))


def told(terms: Sequence[Term]) -> list[str]:
    """The student's values that some term compares."""
    return list(dict.fromkeys(each.student for term in terms for each in term.connections))
