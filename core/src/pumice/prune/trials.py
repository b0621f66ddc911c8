"""Trials: a scorer that stands for others tries them, on the model at hand and at the step's own target.

A network that has just lost half of its channels guesses, whichever these were; what it can still learn shows once its
readers made up for the loss. So a trial prunes to the step's target at once, refits readers and estimates batch
normalisation anew on some of the calibration data, and compares the result with the whole model on others: by the
metrics where there are labels, else by how many answers stay the same. A few hundred samples tell losses apart
coarsely, so the best is, among the scorers whose loss is not worse than the least by more than chance, the one whose
outputs moved least.

Nothing of a trial is kept but its line in the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from pumice.errors import DataError, PluginError, PumiceError
from pumice.measure.budget import CONFIDENCE, judge, rows
from pumice.prune.reading import spread
from pumice.registry import registry
from pumice.strategy import ImportanceScorer, Need

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.pipeline import RunContext

SAMPLES = 384
"""Calibration data that a trial takes at most: a third judges, the others are scored and fitted on."""

FEWEST = 6
"""Samples that are worth dividing."""


@attrs.frozen(kw_only=True)
class Trial:
    """What became of the model with one scorer."""

    scorer: ImportanceScorer
    measure: str
    loss: float
    """What the measure lost; infinite if the scorer failed, or if it is not a number."""
    error: float
    """Standard error of the loss."""
    noise: float
    """Noise-to-signal ratio of the outputs."""
    failure: str = ""

    def not_worse(self, other: Trial) -> bool:
        """Whether chance explains what it lost more than the other."""
        return self.loss - other.loss <= CONFIDENCE * math.hypot(self.error, other.error)

    def __str__(self) -> str:
        return self.failure or f"{self.measure} lost {self.loss:.4f}, noise to signal {self.noise:.3g}"


@attrs.frozen(eq=False)
class Trials:
    """Prunes with any scorer and says what it cost."""

    model: ir.Model
    context: RunContext
    pruned: Callable[[ImportanceScorer, Dataset], ir.Model]
    """The model pruned with a scorer and recovered, on these data."""
    table: list[Trial] = attrs.field(factory=list)
    """Every trial made, in order."""

    def of(self, scorer: ImportanceScorer) -> Trial:
        """Try one.

        Raises:
            DataError: there are no data to judge by.
        """
        fitted, judged = self._data()
        context, failed = self.context, float("inf")
        try:
            changed = self.pruned(scorer, fitted)
            found = judge(self.model, changed, rows(judged, SAMPLES), context.metrics, context.runtime, max_drop=1.0)
            loss = failed if math.isnan(found.loss) else found.loss
            trial = Trial(scorer=scorer, measure=found.measure, loss=loss, error=found.error, noise=found.noise)
        except PumiceError as error:
            trial = Trial(scorer=scorer, measure="", loss=failed, error=0.0, noise=failed, failure=str(error))
        self.table.append(trial)
        return trial

    def _data(self) -> tuple[Dataset, Dataset]:
        """What a trial fits to, and what judges it; the same where there are too few to divide."""
        if self.context.calibration is None:
            raise DataError("choosing a scorer needs calibration data to judge by: give them with --data (data=)")
        data = spread(self.context.calibration, SAMPLES)
        if data.count() < FEWEST:
            return data, data
        judged, fitted = data.split(data.count() // 3)
        return fitted, judged

    def best(self, scorers: Iterable[ImportanceScorer]) -> ImportanceScorer:
        """Try each and take the one whose outputs moved least, of those that lost no more than another but by chance.

        Raises:
            DataError: there are no data to judge by.
            PluginError: there is none, or none works on this model.
        """
        made = [self.of(scorer) for scorer in scorers]
        able = [trial for trial in made if not trial.failure]
        if not able:
            why = (
                made[0].failure if made else "no installed scorer can do with the data: install pumice-prune-magnitude"
            )
            raise PluginError(f"no importance scorer could be chosen: {why}")
        least = min(able, key=lambda trial: trial.loss)
        alike = [trial for trial in able if trial is least or trial.not_worse(least)]
        return min(alike, key=lambda trial: trial.noise).scorer

    def candidates(self, among: Iterable[str] = ()) -> list[ImportanceScorer]:
        """The installed scorers (those named, or all) with their defaults, as far as the data suffice for them."""
        known = registry().strategies(ImportanceScorer.kind)
        made = [registry().make(ImportanceScorer, name) for name in (tuple(among) or known)]
        return [one for one in made if not one.chooses and self._suffices(one) and one.accepts(self.model) is None]

    def _suffices(self, scorer: ImportanceScorer) -> bool:
        data = self.context.calibration
        have = {Need.GRADIENTS} | ({Need.CALIBRATION} if data is not None else set())
        if data is not None and data.labelled:
            have.add(Need.LABELS)
        return scorer.needs <= have
