"""The retreat: milder recipes, where a quantizer with its defaults loses too much.

Few decisions change in proportion to the amplitude of the noise that quantization puts on the outputs,

    drop = c sqrt(noise),

with a c that is the network's more than the quantizer's. So what was measured of all recipes tells about how much noise
is `tolerable`, and the next recipe asks for no more: through the step's knob `noise`, which the accuracy guard holds
every quantizer to (it returns the layers that disturb the outputs most to floating point), a stranger's as well.
Quantizers that choose a format for every layer are the first to be asked, for they have milder formats than floating
point. Then the noise is bisected, quantizer by quantizer, between the most that surely kept the accuracy and the least
that did not.

As long as nothing keeps the accuracy everything is worth it. Once there is a recipe that keeps all limits, a quantizer
is taken up again only if its defaults, had they kept the accuracy, would have been better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from pumice.search.openings import ORIGIN, Opening, quantizer_of
from pumice.search.space import Space
from pumice.search.trial import Trial, tolerable
from pumice.strategy import Quantizer

DIAL = "quantize.noise"
QUANTIZER = "quantize.quantizer"
CLOSE, MOST = 2.0, 5
"""Ratio of two noises between which there is nothing to gain, and milder recipes of one quantizer."""


@attrs.frozen(kw_only=True)
class Line:
    """What was tried of one quantizer alone."""

    choice: dict[str, str]
    """Its name, by the walk's; empty where there is but one."""
    trials: Sequence[Trial]
    max_drop: float
    tolerable: float
    """The noise that all recipes say may be left."""

    @property
    def drop(self) -> float:
        """The least that was lost."""
        return min((trial.drop for trial in self.trials if trial.drop is not None), default=math.inf)

    @property
    def rungs(self) -> int:
        """How many milder recipes were tried."""
        return sum(DIAL in trial.values for trial in self.trials)

    @property
    def settled(self) -> bool:
        """Whether it waits for a trial, cannot be had in time, or was tried often enough."""
        return self.rungs >= MOST or any(trial.state in ("running", "late") for trial in self.trials)

    @property
    def knobs(self) -> dict[str, Any]:
        """Those of the trial to go on from."""
        return quantizer_of(self.trials[0]) if self.trials else dict(self.choice)

    @property
    def promised(self) -> float:
        """What it costs at least, as far as it was measured."""
        return min((trial.cost for trial in self.trials if trial.figures), default=-math.inf)

    @property
    def kept(self) -> float:
        """The most noise with which the accuracy was kept; where all layers were returned, the noise asked for."""
        seen = [t.noise or 0.0 for t in self.trials if t.sure(self.max_drop, self.tolerable)]
        return max([*seen, *(t.values.get(DIAL, 0.0) for t in self.trials if t.state == "failed")], default=0.0)

    @property
    def broken(self) -> float:
        """The least noise with which it was not."""
        lost = [t for t in self.trials if not t.sure(self.max_drop, self.tolerable)]
        return min((t.noise for t in lost if t.noise is not None), default=math.inf)

    @property
    def next(self) -> float | None:
        """The noise to ask for next; None where there is nothing to gain."""
        if self.kept and math.isfinite(self.broken):
            return math.sqrt(self.kept * self.broken) if self.broken > CLOSE * self.kept else None
        return min(self.tolerable, self.broken / CLOSE) if not self.kept else None


@attrs.frozen(kw_only=True)
class Retreat:
    """Less noise, as much as the accuracy asks for."""

    space: Space
    max_drop: float

    def rung(self, trials: Sequence[Trial]) -> Opening | None:
        """What to try next; None where nothing milder is worth it."""
        noise = tolerable(trials, self.max_drop)
        if math.isinf(noise) or ("quantize",) not in self.space.pipelines:
            return None
        lines = sorted(self._lines(trials, noise), key=lambda line: (line.rungs, not self._chooses(line), line.drop))
        for line in lines:
            wanted = None if line.settled else line.next
            if wanted is not None:
                changed = {**line.knobs, DIAL: float(f"{wanted:.1e}")}
                reason = f"{wanted:.1e} of noise is left to the outputs, for more changes too many answers"
                return Opening(proposal=self.space.default(("quantize",), changed), reason=reason)
        return None

    def _lines(self, trials: Sequence[Trial], noise: float) -> list[Line]:
        """The quantizers that are worth it; `noise` is tolerable."""
        alone = [t for t in trials if t.origin.startswith(ORIGIN) and t.pipeline == "quantize"]
        sure = [trial for trial in trials if trial.sure(self.max_drop, noise)]
        best = min((trial.cost for trial in sure if trial.feasible), default=-math.inf)
        found = []
        for choice in self.space.alternatives("quantize"):
            tried = [t for t in alone if t.values.get(QUANTIZER, choice[QUANTIZER]) == choice[QUANTIZER]]
            line = Line(choice=choice, trials=tried, max_drop=self.max_drop, tolerable=noise)
            broken = math.isfinite(line.broken)
            if (broken and line.promised < best) if sure else (broken or self._chooses(line)):
                found.append(line)
        return found

    def _chooses(self, line: Line) -> bool:
        return line.choice[QUANTIZER] in self.space.choosers(Quantizer.kind)
