"""Where a search begins: every installed quantizer at its defaults, the surest first.

`compress` with its defaults is the first trial, and one that the verdict looks at, so the answer of a search is never
worse. The others take turns with the `Retreat`, as long as too much is lost, and with the `Ladder`. So a search of two
minutes already gives a sensible answer, and more time only improves it. Nothing is left out of the space for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from pumice.data.splits import CALIBRATION_SAMPLES
from pumice.recipe import Recipe
from pumice.search.space import Proposal, Space
from pumice.search.trial import Trial
from pumice.steps import STEPS

ORIGIN, PART = "opening: ", "part: "
SAMPLES = "quantize.samples"


@attrs.frozen(kw_only=True)
class Opening:
    """A proposal with its reason."""

    proposal: Proposal
    reason: str
    origin: str = ORIGIN


def quantizer_of(trial: Trial) -> dict[str, Any]:
    """The quantizer of a trial and its knobs; how many samples calibrate is the search's to say."""
    return {name: value for name, value in trial.values.items() if name.startswith("quantize.") and name != SAMPLES}


def parts(space: Space, trials: Sequence[Trial]) -> Iterator[Opening]:
    """What the trials of several steps begin with, each sequence of steps once, so that techniques can be told apart.

    The model is kept from the trial itself and has but to be measured. What was calibrated on fewer samples than it
    would be alone is another; so much is not trained for that.
    """
    known = {trial.pipeline for trial in trials if trial.state != "late"}
    same = space.fixed.get(("quantize", "samples"), CALIBRATION_SAMPLES) == CALIBRATION_SAMPLES
    for trial in trials:
        steps = trial.pipeline.split(" > ") if trial.values and trial.state in ("measured", "stopped") else []
        for begun in (tuple(steps[:count]) for count in range(1, len(steps))):
            kept = same or all(STEPS[name].compresses for name in begun)
            if kept and begun in space.pipelines and " > ".join(begun) not in known:
                values = {name: value for name, value in trial.values.items() if name.partition(".")[0] in begun}
                reason = f"what trial {trial.number} begins with"
                yield Opening(proposal=space.default(begun, values), reason=reason, origin=PART)


def singles(space: Space, first: Mapping[str, Any] = MappingProxyType({})) -> list[Opening]:
    """Every strategy that a one-step recipe may put to work, at its defaults.

    What `compress` does by itself comes first, then what needs least, which as a rule takes least time as well.

    Args:
        space: what can be tried.
        first: knobs of the very first, by the walk's names, where the search has fixed others than `compress` has.
    """
    usual_step = Recipe.default().steps[0].name
    found: list[Opening] = []
    for pipeline in sorted(space.pipelines, key=lambda steps: steps[0] != usual_step):
        if len(pipeline) == 1 and pipeline != ("prune",):
            usual = space.default(pipeline, None if found else first)
            others = [space.default(pipeline, changed) for changed in space.alternatives(*pipeline)]
            proposals = [usual, *(other for other in others if other != usual)]
            found += [Opening(proposal=each, reason=f"{pipeline[0]} with its defaults") for each in proposals]
    return found
