"""Where a search begins: every installed quantizer at its defaults, the surest first.

`compress` with its defaults is the first trial, so the answer of a search is never worse. The others take turns with
the `Ladder`. So a search of two minutes already gives a sensible answer, and more time only improves it. Nothing is
left out of the space for it.
"""

from __future__ import annotations

import attrs

from pumice.recipe import Recipe
from pumice.search.space import Proposal, Space

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
