"""Where a search begins: what an analysis of the model recommends, the surest first.

Every quantizer with its defaults comes first (one of them is nearly always worth it), then pruning by ratios that reach
what the limits ask for, alone and before quantization, repaired by training where the data allow it. So a search of two
minutes already gives a sensible answer, and more time only improves it. Nothing is left out of the space for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pumice.recipe import Recipe
from pumice.search.space import Proposal, Space
from pumice.steps import STEPS

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.steps import Auto

RATIOS = (0.3, 0.15, 0.5)


@attrs.frozen(kw_only=True)
class Opening:
    """A proposal with its reason."""

    proposal: Proposal
    reason: str


def openings(space: Space, model: ir.Model, limits: Auto) -> list[Opening]:
    """What to try first on a model."""
    found = [*_single(space), *_pruned(space, model, limits)]
    unique = {repr(opening.proposal.recipe): opening for opening in reversed(found)}
    return [opening for opening in found if unique[repr(opening.proposal.recipe)] is opening]


def _single(space: Space) -> list[Opening]:
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


def _pruned(space: Space, model: ir.Model, limits: Auto) -> list[Opening]:
    if "prune" not in STEPS or not any("prune" in pipeline for pipeline in space.pipelines):
        return []
    from pumice.prune import find_groups

    groups = find_groups(model).free
    if not groups:
        return []
    told = f"{len(groups)} groups of channels can be pruned"
    ratios = sorted({*RATIOS, *_asked(limits)})
    return [
        Opening(proposal=space.default(pipeline, {"prune.ratio": ratio}), reason=f"{told}; a ratio of {ratio:.2f}")
        for ratio in ratios
        for pipeline in space.pipelines
        if pipeline[0] == "prune"
    ]


def _asked(limits: Auto) -> list[float]:
    """The ratio of channels that a size asks for beyond the four times of 8-bit weights: weights go with its square."""
    return [min(0.9, round(1.0 - (4.0 / limits.size) ** 0.5, 2))] if limits.size > 4.4 else []
