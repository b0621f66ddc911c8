"""Learning on policy: beside the data, every step sees sequences that the student generates as it is now.

What a model generates differs from what it was trained on, and the more so the longer it goes on (exposure bias). So
the beginnings of the samples of a batch are continued by the student, with its present weights and a cache of keys and
values; a share of the teacher in the mixture keeps early students on sensible paths. The loss corrects for the mixture
by importance weights. The samples of the batch itself are trained on as ever, so that the language model stays one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice.data import Batch
from pumice.errors import DataError
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder, Portion
from pumice_distil_policy.generation import Decoder, Samples, sample

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.train import Parameters
    from pumice_distil_policy import OnPolicy


@attrs.frozen(kw_only=True, eq=False)
class SampledBatch(Batch):
    """Sequences that the student has generated."""

    samples: Samples


@attrs.frozen(eq=False)
class SamplingFeeder(Feeder):
    """The batches of a feeder, each beside sequences that begin like its samples and that the student goes on with."""

    settings: OnPolicy = attrs.field(kw_only=True)
    student: ir.Model = attrs.field(kw_only=True)
    teacher: ir.Model = attrs.field(kw_only=True)
    parameters: Parameters = attrs.field(kw_only=True)
    """Of the student; read whenever sequences are drawn."""
    _decoders: list[Decoder] = attrs.field(factory=list)

    def epoch(self, number: int, start: int = 0) -> Iterator[list[Portion]]:
        """
        Raises:
            DataError: samples that are no longer than the prompt.
            ModelError: student or teacher cannot generate with a cache.
        """
        drawn: SampledBatch | None = None
        for step, portions in enumerate(super().epoch(number, start), start):
            if drawn is None or step % self.settings.reuse == 0:
                draws = np.random.default_rng([self.seed, number, step])
                drawn = self._drawn(portions[0].batch, draws)
            yield [*portions, Portion(drawn)]

    def _drawn(self, batch: Batch, draws: np.random.Generator) -> SampledBatch:
        ((name, tokens),) = batch.feeds.items()
        length = tokens.shape[1]
        if length <= self.settings.prompt:
            raise DataError(
                f"the samples are {length} tokens long, no longer than the prompt of {self.settings.prompt}: lower the "
                f"knob 'prompt' of the loss '{self.settings.name}', or give longer samples"
            )
        if not self._decoders:
            self._decoders.extend(Decoder.of(trainable_plan(model), length) for model in self._models())
        shares = [1 - self.settings.teacher_share, self.settings.teacher_share][: len(self._decoders)]
        values = [self.parameters.fed(), {}]
        under_way = [each.start(known) for each, known in zip(self._decoders, values, strict=False)]
        prompts = tokens[:, : self.settings.prompt]
        found = sample(under_way, shares, prompts, length, draws, self.settings.temperature)
        return SampledBatch(feeds={name: found.tokens.astype(tokens.dtype)}, size=len(tokens), samples=found)

    def _models(self) -> list[ir.Model]:
        return [self.student, self.teacher] if self.settings.teacher_share else [self.student]
