"""Where a search begins: what an analysis of the model recommends, the surest first.

`compress` with its defaults is the first trial, so the answer of a search is never worse. Then two courses take turns.
One puts every quantizer to work at its defaults. The other is a ladder: channels are pruned, the rest is repaired by
training where the data allow it, and quantized as was best alone; the ratio starts at what the limits ask for and is
then halved in, between the largest that kept the accuracy and the smallest that did not. So a search of two minutes
already gives a sensible answer, and more time only improves it. Nothing is left out of the space for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pumice.recipe import Recipe
from pumice.search.space import Proposal, Space
from pumice.search.trial import Trial
from pumice.steps import STEPS, Step, Train

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.steps import Auto

START, MOST, CLOSE = 0.3, 0.9, 0.06
"""The ladder's first ratio, its largest, and the gap between two at which it ends."""
REPAIR_STEPS, MOST_EPOCHS = 1000, 30
"""Updates of the weights that a repair should have, and passes over few data that it may take for them."""
TRAINED_PER_SECOND, REPAIR_SHARE = 1e10, 0.25
"""Multiply-accumulates that training gets through at least, and the share of the budget that one repair may take."""
ORIGIN = "opening: "


@attrs.frozen(kw_only=True)
class Opening:
    """A proposal with its reason."""

    proposal: Proposal
    reason: str


def singles(space: Space) -> list[Opening]:
    """Every strategy that a one-step recipe may put to work, at its defaults; what `compress` does by itself first."""
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
    pipelines: tuple[tuple[str, ...], ...]
    """The best, and what takes over where that fails or takes too long."""
    epochs: int
    """Of the repair."""
    start: float
    max_drop: float
    reason: str

    @classmethod
    def of(cls, space: Space, model: ir.Model, limits: Auto, samples: int, macs: int) -> Ladder | None:
        """The ladder for a model, None where nothing can be pruned.

        Args:
            space: what can be tried.
            model: the original.
            limits: what is asked for.
            samples: how many there are to train on.
            macs: multiply-accumulates of the model for one.
        """
        passes = _passes(limits, samples, macs)
        chains = [steps for steps in space.pipelines if steps[0] == "prune" and (passes or not _repairs(steps))]
        chains.sort(key=_merit, reverse=True)
        if not chains:
            return None
        from pumice.prune import find_groups

        groups = find_groups(model).free
        if not groups:
            return None
        return cls(
            space=space,
            pipelines=tuple(dict.fromkeys([chains[0], next(steps for steps in chains if not _repairs(steps))])),
            epochs=passes,
            start=_asked(limits),
            max_drop=limits.max_drop,
            reason=f"{len(groups)} groups of channels can be pruned",
        )

    def rung(self, trials: Sequence[Trial]) -> Opening | None:
        """What to try next; None at the end, or while a rung is being tried."""
        opened = [trial for trial in trials if trial.origin.startswith(ORIGIN)]
        judged = {t.values["pipeline"] for t in opened if t.state in ("measured", "stopped")}
        broken = {t.values["pipeline"] for t in opened if t.state in ("failed", "late")} - judged
        pipeline = next((steps for steps in self.pipelines if " > ".join(steps) not in broken), None)
        mine = [t for t in opened if pipeline is not None and t.values["pipeline"] == " > ".join(pipeline)]
        if pipeline is None or any(trial.state == "running" for trial in mine):
            return None
        known = {t.values["prune.ratio"]: self._kept(t) for t in mine if t.state in ("measured", "stopped")}
        low = max((ratio for ratio, kept in known.items() if kept), default=0.0)
        high = min((ratio for ratio, kept in known.items() if not kept and ratio > low), default=MOST)
        if not known:
            ratio = self.start
        elif high - low > CLOSE:
            ratio = round((low + high) / 2, 2)
        elif low:
            ratio = low  # with what has turned out to be the best quantizer since
        else:
            return None
        changed = {**self._repair(pipeline), **_best_quantizer(trials), "prune.ratio": ratio}
        proposal = self.space.default(pipeline, changed)
        return Opening(proposal=proposal, reason=f"{self.reason}; a ratio of {ratio:.2f}")

    def _repair(self, pipeline: tuple[str, ...]) -> dict[str, Any]:
        """Training, or, where there is none, the readers' own recovery."""
        trained = {f"{step.name}.epochs": self.epochs for step in _repairs(pipeline)}
        return trained or {"prune.recover": "least-squares"}

    def _kept(self, trial: Trial) -> bool:
        return trial.figures is not None and trial.figures.drop <= self.max_drop


def _merit(steps: tuple[str, ...]) -> tuple[int, int]:
    """Pruned, repaired once and made of integers is best; among repairs that which makes use of most (a teacher)."""
    repairs = _repairs(steps)
    whole = 2 * (steps[-1] == "quantize") + (len(repairs) == 1) - max(0, len(repairs) - 1)
    return whole, max((len(step.needs) for step in repairs), default=0)


def _repairs(steps: tuple[str, ...]) -> list[type[Step]]:
    return [STEPS[name] for name in steps if not STEPS[name].compresses]


def _best_quantizer(trials: Sequence[Trial]) -> dict[str, Any]:
    """The knobs of the quantization that was best alone so far."""
    alone = [trial for trial in trials if trial.state == "measured" and trial.values.get("pipeline") == "quantize"]
    best = min(alone, key=lambda trial: trial.rank, default=None)
    return {} if best is None else {name: best.values[name] for name in best.values if name.startswith("quantize.")}


def _passes(limits: Auto, samples: int, macs: int) -> int:
    """How often a repair passes over the data; 0 where the budget does not allow it once."""
    steps: int = max(1, samples // Train.knobs()["batch"].default)
    wanted = min(max(1, round(REPAIR_STEPS / steps)), MOST_EPOCHS)
    if not limits.budget:
        return wanted
    once = 3 * max(1, macs) * max(1, samples)  # forward, and twice as much backward
    return min(wanted, int(REPAIR_SHARE * limits.budget * 60 * TRAINED_PER_SECOND / once))


def _asked(limits: Auto) -> float:
    """The ratio of channels that a size asks for beyond the four times of 8-bit weights: weights go with its square."""
    return min(MOST, max(START, round(1.0 - (4.0 / limits.size) ** 0.5, 2))) if limits.size > 4.0 else START
