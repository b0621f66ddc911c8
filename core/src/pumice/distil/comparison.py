"""What the teacher was worth: the same student trained alone, by the labels, as often as it was taught.

A pair of trainings begins with the same weights and sees the same samples in the same order; pairs differ in the seed.
The gain is the mean of the differences of their scores on the test samples, with its 95% interval by Student's t. The
training alone is the `train` step with the knobs of the distillation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice.distil.stages import Teach
from pumice.errors import DataError
from pumice.ledger import Ledger
from pumice.measure.accuracy import evaluate
from pumice.train.application import train

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext
    from pumice.steps import Distil


@attrs.frozen(kw_only=True)
class Gain:
    """Scores of pairs of trainings, seed by seed."""

    metric: str
    alone: tuple[float, ...]
    taught: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.taught) - np.mean(self.alone))

    @property
    def interval(self) -> float:
        """Half the width of the 95% interval of the mean difference; infinite for a single pair."""
        from scipy import stats

        count = len(self.taught)
        if count < 2:
            return float("inf")
        spread = np.std(np.subtract(self.taught, self.alone), ddof=1)
        return float(stats.t.ppf(0.975, count - 1) * spread / np.sqrt(count))

    def __str__(self) -> str:
        sure = "one seed" if len(self.taught) == 1 else f"{self.interval:.4f} either way, {len(self.taught)} seeds"
        taught, alone = np.mean(self.taught), np.mean(self.alone)
        return f"the student reached {taught:.4f} {self.metric} taught and {alone:.4f} alone: {self.mean:+.4f} ({sure})"


def gain(
    settings: Distil, student: ir.Model, teacher: ir.Model, done: ir.Model, context: RunContext, teach: Teach
) -> Gain:
    """
    Args:
        settings: the step; `pairs` says how many.
        student: before its training.
        teacher: whom it learned from.
        done: the student after its training by the run's own seed.
        context: of the run.
        teach: trains the student once more, in another context.

    Raises:
        DataError: no labels to train alone on, or nothing to score with.
    """
    if context.training is None or not context.training.labelled or context.test is None:
        raise DataError("step 'distil' can compare with a student trained alone only on labelled data: set pairs to 0")
    plain = attrs.evolve(settings, snapshot="")
    alone, taught, metric = [], [], ""
    for number in range(settings.pairs):
        own = attrs.evolve(context, seed=context.seed + number, ledger=Ledger(), notes=[])
        models = (train(plain, student, own), teach(plain, student, teacher, own) if number else done)
        scores = [
            evaluate(each, context.test, context.metrics, reference=context.original, runtime=context.runtime).primary
            for each in models
        ]
        if scores[0] is None or scores[1] is None:
            raise DataError("no metric scores this student: name one that uses the labels, or set pairs to 0")
        metric = scores[0].name
        alone.append(scores[0].mean)
        taught.append(scores[1].mean)
    return Gain(metric=metric, alone=tuple(alone), taught=tuple(taught))
