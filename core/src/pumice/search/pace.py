"""What a budget has room for: how many samples calibrate, and when the last trial has to end.

Everything is counted in inferences of the original, one of which is timed first. A quantizer passes over every sample
that calibrates some times and does about as much beside it, `INFERENCES` in all; a recipe should not take more of the
budget than `AFFORDED` for that, so that many can be tried. The first, which is what `compress` does by itself, has all
samples that it has there, unless it would be all that is tried.

A verdict scores the samples held out with the original and with each candidate, which is then timed; a few candidates
always have the time for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from pumice.data.splits import CALIBRATION_SAMPLES
from pumice.search.passes import rounded_passes

if TYPE_CHECKING:
    from pumice.search.laboratory import Laboratory
    from pumice.search.trial import Trial

ROUNDS = 3
"""Inferences to time; the quickest counts."""
INFERENCES = 30
"""What a quantizer takes for a sample."""
AFFORDED, FIRST = 0.02, 0.25
"""Shares of the budget that calibrating one recipe may take, and the first."""
FEWEST = 32
"""Samples that calibrate a recipe at least."""
SPARED, MOST_SPARED = 0.03, 0.25
"""Least and largest share of the budget that is kept for the verdict."""
CERTAIN = 3
"""Candidates that the verdict has time for in any case: the surest, the boldest, and the defaults."""
TIMING = 2.0
"""Seconds that timing a candidate takes."""


@attrs.frozen(kw_only=True)
class Pace:
    """The times of one search, as `time.perf_counter` has them; they are infinite where there is no budget."""

    began: float
    deadline: float
    """When the last trial has to end."""
    end: float
    """When the verdict has to be there."""
    samples: int
    """That calibrate a recipe."""
    first: int
    """That calibrate the first."""

    @classmethod
    def of(cls, laboratory: Laboratory, began: float) -> Pace:
        """The pace for the models and the data of a laboratory, on this machine."""
        budget = 60.0 * laboratory.limits.budget or math.inf
        inference, held_out = seconds_of_an_inference(laboratory), laboratory.evidence.held_out.count()
        verdict = inference * held_out * (1 + CERTAIN) + CERTAIN * TIMING
        most = laboratory.evidence.calibration[CALIBRATION_SAMPLES, False].count()
        samples = affordable(AFFORDED * budget, inference, most)
        spared = min(max(SPARED * budget, verdict), MOST_SPARED * budget)
        return cls(
            began=began,
            deadline=began + budget - spared if math.isfinite(budget) else math.inf,
            end=began + budget,
            samples=samples,
            first=CALIBRATION_SAMPLES if affordable(FIRST * budget, inference, most) >= most else samples,
        )

    def going_on(self, earlier: Iterable[Trial]) -> Pace:
        """With as many samples as the courses before it took, so that the data are divided as they were."""
        known = [step.get("samples", CALIBRATION_SAMPLES) for trial in earlier for step in trial.recipe["step"]]
        few = (count for count in known if count != CALIBRATION_SAMPLES)
        return attrs.evolve(self, samples=next(few, CALIBRATION_SAMPLES)) if known else self


def affordable(seconds: float, inference: float, most: int) -> int:
    """Samples that a quantizer passes over in this time, rounded so that two timings mostly agree.

    Where there is time for the most that there are, it is as many as `compress` would take.
    """
    count = seconds / (INFERENCES * inference)
    return CALIBRATION_SAMPLES if count >= most else max(FEWEST, rounded_passes(count))


def seconds_of_an_inference(laboratory: Laboratory) -> float:
    """What the original takes for a sample, at the least."""
    session = laboratory.engine.open(laboratory.model)
    feeds = next(iter(laboratory.evidence.search.samples([0]))).feeds
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        session.run(feeds)
        took.append(time.perf_counter() - began)
    return min(took)
