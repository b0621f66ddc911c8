"""Reverse divergence on policy: a language model learns from its teacher on what it generates itself (MiniLLM).

Of sequences y drawn from a mixture m of student and teacher, q the student's probabilities, p the teacher's (Gu et al.,
ICLR 2024), the gradient of KL(q | p) over whole sequences is that of

    mean over tokens of   w_t KL(q_t | p_t)  -  a min(r_t A_t, clip(r_t, 1 - e, 1 + e) A_t)

    w_t = q(y_t) / m(y_t)       when the sequence was drawn: weighs tokens as if the student alone had drawn them
    r_t = q(y_t) / m(y_t)       of the student as it is now; it moves, by no more than e, if samples are used again
    R_t = mean of log p(y_u) / q(y_u) over the later tokens u > t        what the token leads to, whatever the length
    A_t = R_t - mean of R_t over the batch

The first part is exact for each token by itself; the second one credits a token with what follows from it. Scores are
(N, T, C); position t - 1 speaks about token t.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Float, Int, Loss, hookimpl, knob
from pumice.distil.loss import SampledLoss, TaughtBatch
from pumice.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.train import Parameters
    from pumice.train.feeding import Feeder
    from pumice_distil_policy.generation import Samples

Array = NDArray[Any]


@attrs.frozen(kw_only=True)
class OnPolicy(SampledLoss):
    """KL(student, teacher) of whole sequences that the student generates."""

    name = "on-policy"
    prompt: int = knob(16, Int(1, 100_000), help="tokens of a sample that are given; the student goes on from there")
    teacher_share: float = knob(0.2, Float(0.0, 1.0), help="share of the teacher in what tokens are drawn from")
    temperature: float = knob(1.0, Float(0.01, 100.0), help="scores are divided by it when tokens are drawn")
    reuse: int = knob(1, Int(1, 100), help="steps that learn from the same samples")
    clip: float = knob(0.2, Float(0.0, 10.0), help="how far from 1 the ratio of new to old probabilities may count")
    credit: float = knob(0.5, Float(0.0, 100.0), help="share of what follows from a token, beside the token itself")

    def feeder(self, data: Feeder, student: ir.Model, teacher: ir.Model, parameters: Parameters) -> Feeder:
        from pumice_distil_policy.sampling import SamplingFeeder

        return SamplingFeeder(
            *(data.dataset, data.batch, data.seed, data.augment),
            settings=self,
            student=student,
            teacher=teacher,
            parameters=parameters,
        )

    def value_and_grad(self, outputs: Mapping[str, Array], batch: TaughtBatch) -> tuple[float, dict[str, Array]]:
        if batch.samples is None:
            raise DataError(
                "the loss 'on-policy' was given nothing that the student generated: use it in step 'distil'"
            )
        ((name, target),) = batch.targets.items()
        value, grad = self._of_sequences(outputs[name], target.value, batch.samples)
        return value, {name: grad}

    def _of_sequences(self, student: Array, teacher: Array, samples: Samples) -> tuple[float, Array]:
        spoken = slice(samples.prompt - 1, -1)
        kind = np.result_type(student.dtype, np.float32)
        log_q, log_p = (_log_softmax(z[:, spoken].astype(kind)) for z in (student, teacher))
        drawn = samples.tokens[:, samples.prompt :, None]
        own, theirs = (np.take_along_axis(z, drawn, axis=2)[..., 0] for z in (log_q, log_p))
        q, apart = np.exp(log_q), log_q - log_p
        weight = np.exp(samples.log_student - samples.log_drawn)
        divergence = (q * apart).sum(axis=2)
        d_scores = weight[..., None] * q * (apart - divergence[..., None])
        advantage = _advantage(theirs - samples.log_student)
        ratio = np.exp(own - samples.log_drawn)
        plain, clipped = ratio * advantage, np.clip(ratio, 1 - self.clip, 1 + self.clip) * advantage
        pull = self.credit * np.where(plain <= clipped, plain, 0)[..., None]
        d_scores += pull * q
        np.put_along_axis(d_scores, drawn, np.take_along_axis(d_scores, drawn, axis=2) - pull, axis=2)
        grad = np.zeros(student.shape, kind)
        grad[:, spoken] = d_scores / drawn.size
        value = (weight * divergence - self.credit * np.minimum(plain, clipped)).mean()
        return float(value), grad


def _advantage(rewards: Array) -> Array:
    """The mean reward of the later tokens, relative to that of the other sequences at the same place."""
    later = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1] - rewards
    count = np.maximum(np.arange(rewards.shape[1])[::-1], 1)
    returns = later / count
    return np.asarray(returns - returns.mean(axis=0))


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield OnPolicy
