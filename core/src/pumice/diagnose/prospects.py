"""Prospects: what pruning would leave of a model, and which of its weights bear few bits worst.

Pruning is worked out, not guessed: a share of the channels of every group is taken away as `prune` would, the first of
each, and what is left is counted. Which channels go decides what it costs, not what it saves.

Sensitivity is what rounding to `BITS` bits with a scale an output does to each layer's weights, as signal to noise. It
needs no data; a layer far below the others is the first that should keep more bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pumice.diagnose.decibels import sqnr_of
from pumice.errors import ModelError
from pumice.model import nodes, size

if TYPE_CHECKING:
    import onnx_ir as ir

RATIO = 0.3
"""Share of the channels that is taken away, which `prune` takes by default."""
BITS = 4
BELOW = 6.0
"""Decibels, one bit, below the middle layer at which a layer stands out."""
FEWEST = 4
"""Layers below which there is no middle to stand out from."""


def pruning(model: ir.Model, macs_of: Callable[[ir.Model], Mapping[str, int]]) -> str:
    """What is left without some of the channels; empty where none can go.

    Args:
        model: a loaded model; left unchanged.
        macs_of: counts the multiply-accumulates of the nodes of a model, by their names.
    """
    from pumice.prune import find_groups
    from pumice.prune.groups import union
    from pumice.prune.surgery import remove

    groups = find_groups(model)
    cuts = union(group.cuts(range(int(RATIO * group.channels))) for group in groups.free)
    if not cuts:
        return ""
    try:
        pruned = remove(groups.wiring, cuts)
    except ModelError:  # such channels are no prospect; `prune` would say so
        return ""
    before, after = macs_of(model), macs_of(pruned)
    known = any(before.values()) and all(after.get(name) for name, macs in before.items() if macs)
    work = f" and {sum(after.values()) / sum(before.values()):.0%} of the multiply-accumulates" if known else ""
    channels, count = sum(group.channels for group in groups.free), len(groups.free)
    return (
        f"Pruning: {channels} channels in {count} {'group' if count == 1 else 'groups'} can go; without {RATIO:.0%} of "
        f"each, {size(pruned).total / max(size(model).total, 1):.0%} of the bytes{work} are left. It "
        "costs more accuracy than 8-bit integers as a rule: prune with recover = least-squares, and train or distil "
        "afterwards where there is time."
    )


def sensitivity(model: ir.Model) -> str:
    """The layers whose weights bear few bits worst; empty where none stands out."""
    from pumice.quantize.grids import AffineGrid
    from pumice.quantize.weight_matrices import weight_matrices

    found = {}
    for matrix in weight_matrices(nodes(model)):
        rows = matrix.rows()
        grid = AffineGrid.covering(rows, bits=BITS, block=matrix.shape[2], symmetric=True)
        decibels = sqnr_of(rows, grid.values(grid.codes(rows)))
        if decibels is not None:
            found[matrix.readers[0][0].name or ""] = decibels
    if len(found) < FEWEST:
        return ""
    middle = float(np.median(list(found.values())))
    poor = sorted((decibels, name) for name, decibels in found.items() if decibels < middle - BELOW)
    if not poor:
        return ""
    named = ", ".join(f"'{name}' ({decibels:.0f} dB)" for decibels, name in poor[:3])
    return (
        f"Sensitivity: rounded to {BITS} bits, the weights of {named} keep least of their precision (the middle layer "
        f"{middle:.0f} dB); leave them at 8 bits or more, which costs size where they are large."
    )
