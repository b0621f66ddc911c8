"""How much the outputs feel what a layer loses: scores of all layers on the scale of the model's own error.

Of every group alone, the fifth of its channels with the lowest scores is removed, its readers recovered as the step
would, and the model run: the noise-to-signal ratio of the outputs, per unit of score removed, is what a score of that
group is multiplied by. Scores then say what their channel costs the outputs, and a ranking over layers allots each what
the outputs bear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pumice.measure.budget import Drift
from pumice.model import clone
from pumice.prune.groups import ChannelGroup, Cuts
from pumice.prune.proof import Feeds
from pumice.prune.selection import Scores
from pumice.prune.surgery import remove
from pumice.prune.wiring import Wiring

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.strategy import Runtime

SHARE = 0.2
SAMPLES = 32


def in_output_noise(
    wiring: Wiring,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Scores],
    recovered: Callable[[Cuts, ir.Model], ir.Model],
    feeds: Sequence[Feeds],
    runtime: Runtime,
) -> dict[str, Scores]:
    """The scores of every group, scaled."""
    session = runtime.open(clone(wiring.model))
    whole = [session.run(feed) for feed in feeds]
    found = {}
    for group in groups:
        lowest = np.argsort(scores[group.name], kind="stable")[: max(1, round(SHARE * group.channels))]
        cuts = group.cuts(lowest.tolist())
        pruned = runtime.open(recovered(cuts, remove(wiring, cuts)))
        drift = Drift()
        for feed, exact in zip(feeds, whole, strict=True):
            drift.update(exact, pruned.run(feed))
        found[group.name] = scores[group.name] * drift.ratio / max(float(scores[group.name][lowest].sum()), 1e-30)
    return found
