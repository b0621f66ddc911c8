"""Trials: a scorer that stands for others tries them, on the model at hand and at the step's own target.

A trial prunes the model as the step would, recovery included, and judges the result on calibration data: by the metrics
where there are labels, else by how many answers stay the same. Between equals the one whose outputs moved less is the
better. Nothing of a trial is kept but its line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from pumice.errors import DataError, PluginError, PumiceError
from pumice.measure.budget import JUDGED, judge, rows
from pumice.registry import registry
from pumice.strategy import ImportanceScorer, Need

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext


@attrs.frozen(kw_only=True)
class Trial:
    """What became of the model with one scorer."""

    scorer: ImportanceScorer
    measure: str
    loss: float
    """What the measure lost; infinite if the scorer failed."""
    noise: float
    """Noise-to-signal ratio of the outputs."""
    failure: str = ""

    @property
    def rank(self) -> tuple[float, float]:
        """Lower is better."""
        return self.loss, self.noise

    def __str__(self) -> str:
        return self.failure or f"{self.measure} lost {self.loss:.4f}, noise to signal {self.noise:.3g}"


@attrs.frozen(eq=False)
class Trials:
    """Prunes with any scorer and says what it cost."""

    model: ir.Model
    context: RunContext
    pruned: Callable[[ImportanceScorer], ir.Model]
    table: list[Trial] = attrs.field(factory=list)
    """Every trial made, in order."""

    def of(self, scorer: ImportanceScorer) -> Trial:
        """Try one.

        Raises:
            DataError: there are no data to judge by.
        """
        data, context = self.context.calibration, self.context
        if data is None:
            raise DataError("choosing a scorer needs calibration data to judge by: give them with --data (data=)")
        try:
            changed = self.pruned(scorer)
            verdict = judge(self.model, changed, rows(data, JUDGED), context.metrics, context.runtime, max_drop=1.0)
            trial = Trial(scorer=scorer, measure=verdict.measure, loss=verdict.loss, noise=verdict.noise)
        except PumiceError as error:
            trial = Trial(scorer=scorer, measure="", loss=float("inf"), noise=float("inf"), failure=str(error))
        self.table.append(trial)
        return trial

    def best(self, scorers: Iterable[ImportanceScorer]) -> ImportanceScorer:
        """Try each and take the one that lost least.

        Raises:
            DataError: there are no data to judge by.
            PluginError: there is none, or none works on this model.
        """
        made = [self.of(scorer) for scorer in scorers]
        best = min(made, key=lambda trial: trial.rank, default=None)
        if best is None or best.failure:
            why = best.failure if best else "no installed scorer can do with the data: install pumice-prune-magnitude"
            raise PluginError(f"no importance scorer could be chosen: {why}")
        return best.scorer

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
