"""Label-free recovery: what the removed channels carried is made, as far as it can be, from the channels kept.

On calibration data the removed channels of a value x are predicted from the kept ones by least squares,

    min_A || x_removed - x_kept A ||^2 + l ||A||^2,      l = 1e-6 of the mean square of x_kept

and the weights that read them take the prediction in: W_kept <- W_kept + A W_removed. It holds for every linear reader
(a matrix, a convolution of one group), needs no labels and no training, and changes neither shapes nor cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import clone, constant
from pumice.ops.channels import Same, Summed
from pumice.prune.groups import Cuts, Mask
from pumice.prune.scoring import Values
from pumice.prune.surgery import take
from pumice.prune.wiring import Place, Wired, Wiring

Array = NDArray[Any]
RIDGE = 1e-6


def reconstruct(wiring: Wiring, cuts: Cuts, pruned: ir.Model, values: Values) -> tuple[ir.Model, int]:
    """The pruned model with readers refitted, and how many were.

    `values` are activations of the whole model.
    """
    model = clone(pruned)
    solved: dict[Place, Array] = {}
    count = 0
    for source, weight in _readers(wiring, cuts):
        held = model.graph.initializers.get(weight.value)
        array = constant(wiring.values[weight.value])
        key = (source.value, source.axis)
        if held is None or array is None or not isinstance(weight.axis, int) or key not in values:
            continue
        if source not in solved:
            solved[source] = prediction(values[key], cuts[source])
        others = {place.axis: mask for place, mask in cuts.items() if place.value == weight.value and place != weight}
        refitted = take(absorbed(array, weight.axis, cuts[source], solved[source]), others)
        held.const_value = ir.tensor(refitted.astype(array.dtype), name=weight.value)
        count += 1
    return model, count


def prediction(x: Array, cut: Mask) -> Array:
    """A of the least squares problem: (kept, removed)."""
    kept, gone = x[:, ~cut].astype(np.float64), x[:, cut].astype(np.float64)
    moments = kept.T @ kept
    ridge = RIDGE * (np.trace(moments) / len(moments) or 1.0)
    return np.asarray(np.linalg.solve(moments + ridge * np.eye(len(moments)), kept.T @ gone))


def absorbed(weight: Array, axis: int, cut: Mask, prediction: Array) -> Array:
    """The kept part of a weight along its reading axis, with the removed part mixed in."""
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    mixed = flat[~cut] + prediction @ flat[cut]
    return np.moveaxis(mixed.reshape(-1, *rows.shape[1:]), 0, axis)


def _readers(wiring: Wiring, cuts: Cuts) -> Iterator[tuple[Place, Place]]:
    """Every value that loses channels where a node sums over them, with the node's own weight for that sum."""
    for wired in wiring.nodes:
        for tie in wired.ties:
            source = wired.place(tie.port) if isinstance(tie, Summed) else None
            weight = _weight(wired, source) if source is not None and source in cuts else None
            if (
                source is not None
                and weight is not None
                and len(wiring.touching[weight.value]) == 1
                and source.value not in wiring.constants
            ):
                yield source, weight


def _weight(wired: Wired, source: Place) -> Place | None:
    for tie in wired.ties:
        if isinstance(tie, Same) and tie.a_index is None and tie.b_index is None:
            a, b = wired.place(tie.a), wired.place(tie.b)
            if a == source and tie.b.slot >= 0 and b is not None and b != source:
                return b
    return None
