"""Where a search begins: what an analysis of the model recommends, the surest first.

`compress` with its defaults is the first trial, so the answer of a search is never worse. Then two courses take turns.
One puts every quantizer to work at its defaults. The other is a ladder: channels are pruned, what reads them is
refitted, and the rest is quantized as was best alone; the ratio starts at what the limits ask for and is then halved
in, between the largest that kept the accuracy, with a standard error to spare, and the smallest that did not. At these
two the other quantizers that kept it alone take their turn. Then the ladder goes on from there with training as well,
where the data and the budget have room for it, and at last with more of it. So a search of two minutes already gives a
sensible answer, and more time only improves it. Nothing is left out of the space for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pumice.recipe import Recipe
from pumice.search.passes import power_of_two, wanted_passes
from pumice.search.space import Proposal, Space
from pumice.search.trial import Trial
from pumice.steps import STEPS, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.steps import Auto

START, MOST, CLOSE = 0.3, 0.9, 0.06
"""The ladder's first ratio, its largest, and the gap between two at which it ends."""
REPAIR_SHARES = 0.08, 0.2
"""Shares of the budget that one repair may take: on the ladder's first course, and at most."""
REPAIR_RATE = 3e-4
"""Learning rate of a repair: what was refitted is near its end, and few passes do not mend what a high one breaks."""
OTHERS = 3
"""Other quantizers that take their turn where a course has ended."""
ORIGIN = "opening: "


@attrs.frozen(kw_only=True)
class Opening:
    """A proposal with its reason."""

    proposal: Proposal
    reason: str


def singles(space: Space) -> list[Opening]:
    """Every strategy that a one-step recipe may put to work, at its defaults.

    What `compress` does by itself comes first, then what needs least, which as a rule takes least time as well.
    """
    usual_step = Recipe.default().steps[0].name
    found = []
    for pipeline in sorted(space.pipelines, key=lambda steps: steps[0] != usual_step):
        if len(pipeline) == 1 and pipeline != ("prune",):
            usual = space.default(pipeline)
            others = [space.default(pipeline, changed) for changed in space.alternatives(*pipeline)]
            proposals = [usual, *(other for other in others if other != usual)]
            found += [Opening(proposal=each, reason=f"{pipeline[0]} with its defaults") for each in proposals]
    return found


@attrs.frozen(kw_only=True)
class Ladder:
    """Pruning by as much as the accuracy allows; each rung is a function of the trials so far."""

    space: Space
    courses: tuple[tuple[tuple[str, ...], float], ...]
    """Pipelines, one after the other, and the passes over the data that a repair of the whole model may take there."""
    wanted: int
    """Passes that suffice."""
    start: float
    max_drop: float
    reason: str

    @classmethod
    def of(cls, space: Space, model: ir.Model, limits: Auto, samples: int, pass_seconds: float) -> Ladder | None:
        """The ladder for a model, None where nothing can be pruned.

        Args:
            space: what can be tried.
            model: the original.
            limits: what is asked for.
            samples: how many there are to train on.
            pass_seconds: what training the original on all of them once takes; infinite where it cannot be trained.
        """
        wanted, start = wanted_passes(samples), _asked(limits)
        allowed = [share * limits.budget * 60 / pass_seconds if limits.budget else wanted for share in REPAIR_SHARES]
        chains = sorted((steps for steps in space.pipelines if steps[0] == "prune"), key=_merit, reverse=True)
        plain = next((steps for steps in chains if not _repairs(steps)), None)
        repaired = next((steps for steps in chains if _repairs(steps)), None)
        courses = [(plain, 0.0)] if plain else []
        courses += [(repaired, count) for count in allowed if repaired and _epochs(count, wanted, start)]
        if not courses:
            return None
        from pumice.prune import find_groups

        groups = find_groups(model).free
        if not groups:
            return None
        return cls(
            space=space,
            courses=tuple(dict.fromkeys(courses)),
            wanted=wanted,
            start=start,
            max_drop=limits.max_drop,
            reason=f"{len(groups)} groups of channels can be pruned",
        )

    def rung(self, trials: Sequence[Trial]) -> Opening | None:
        """What to try next; None at the end, or while a rung is being tried."""
        mine = [trial for trial in trials if trial.origin.startswith(ORIGIN) and "prune.ratio" in trial.values]
        if any(trial.state == "running" for trial in mine):
            return None
        judged = {t.values["pipeline"] for t in mine if t.state in ("measured", "stopped")}
        broken = {t.values["pipeline"] for t in mine} - judged
        quantizers = _quantizers(trials, self.max_drop)
        before, start = 0.0, self.start
        for pipeline, passes in self.courses:
            if " > ".join(pipeline) in broken:
                continue
            known = self._known(pipeline, passes, mine)
            low = max((ratio for ratio, kept in known.items() if kept), default=before)
            high = min((ratio for ratio, kept in known.items() if not kept and ratio > low), default=MOST)
            ratio = start if not known else round((low + high) / 2, 2) if high - low > CLOSE else MOST
            if ratio < MOST:
                return self._opening(pipeline, passes, ratio, next(iter(quantizers), {}))
            ends = [ratio for ratio in (high, low) if ratio in known]
            for ratio, quantizer in itertools.product(ends, quantizers[: 1 + OTHERS]):
                opening = self._opening(pipeline, passes, ratio, quantizer)
                if all(opening.proposal.values != trial.values for trial in mine):
                    return opening
            before, start = low, high
        return None

    def _known(self, pipeline: tuple[str, ...], passes: float, mine: Sequence[Trial]) -> dict[float, bool]:
        """The ratios of one course, and whether any quantizer kept the accuracy; what broke or came late did not."""
        known: dict[float, bool] = {}
        for trial in mine:
            ratio = trial.values["prune.ratio"]
            asked = {"pipeline": " > ".join(pipeline), **self._repair(pipeline, passes, ratio)}
            if asked.items() <= trial.values.items():
                known[ratio] = known.get(ratio, False) or self._kept(trial)
        return known

    def _opening(self, pipeline: tuple[str, ...], passes: float, ratio: float, quantizer: dict[str, Any]) -> Opening:
        changed = {**self._repair(pipeline, passes, ratio), **quantizer, "prune.ratio": ratio}
        proposal = self.space.default(pipeline, changed)
        return Opening(proposal=proposal, reason=f"{self.reason}; a ratio of {ratio:.2f}")

    def _repair(self, pipeline: tuple[str, ...], passes: float, ratio: float) -> dict[str, Any]:
        """The readers' own recovery, and training, of which a smaller network has more passes."""
        epochs = max(1, _epochs(passes, self.wanted, ratio))
        changed: dict[str, Any] = {"prune.recover": "least-squares"}
        for step in _repairs(pipeline):
            changed |= {f"{step.name}.epochs": epochs, f"{step.name}.lr": REPAIR_RATE}
        return changed

    def _kept(self, trial: Trial) -> bool:
        return trial.figures is not None and trial.figures.cautious_drop <= self.max_drop


def _merit(steps: tuple[str, ...]) -> tuple[int, int]:
    """Pruned, repaired once and made of integers is best; among repairs that which makes use of most (a teacher)."""
    repairs = _repairs(steps)
    whole = 2 * (steps[-1] == "quantize") + (len(repairs) == 1) - max(0, len(repairs) - 1)
    return whole, max((len(step.needs) for step in repairs), default=0)


def _repairs(steps: tuple[str, ...]) -> list[type[Step]]:
    return [STEPS[name] for name in steps if not STEPS[name].compresses]


def _quantizers(trials: Sequence[Trial], max_drop: float) -> list[dict[str, Any]]:
    """The knobs of the quantizations that kept the accuracy alone, what costs least first; else of the most accurate.

    Limits on size and time are not asked here: pruning is what reaches them.
    """
    alone = [(t, t.figures.drop) for t in trials if t.figures and t.values.get("pipeline") == "quantize"]
    ranked = sorted(alone, key=lambda one: (max(0.0, one[1] - max_drop), one[0].cost, one[0].number))
    best: dict[str, dict[str, Any]] = {}
    for trial, drop in ranked:
        if drop <= max_drop or not best:
            knobs = {name: value for name, value in trial.values.items() if name.startswith("quantize.")}
            best.setdefault(str(knobs.get("quantize.quantizer")), knobs)
    return list(best.values())


def _epochs(passes: float, wanted: int, ratio: float) -> int:
    """Passes of a repair where this share of the channels is gone: work goes with the square of what is left."""
    return min(wanted, power_of_two(passes / (1.0 - ratio) ** 2))


def most_epochs(limits: Auto, samples: int, pass_seconds: float) -> int:
    """Passes of a training that a search may propose for a network that is pruned as the ladder begins."""
    wanted = wanted_passes(samples)
    return _epochs(max(REPAIR_SHARES) * limits.budget * 60 / pass_seconds, wanted, START) if limits.budget else wanted


def _asked(limits: Auto) -> float:
    """The ratio of channels that a size asks for beyond the four times of 8-bit weights: weights go with its square."""
    return min(MOST, max(START, round(1.0 - (4.0 / limits.size) ** 0.5, 2))) if limits.size > 4.0 else START
