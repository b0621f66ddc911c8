"""Label-free recovery: every reader is refitted to what it used to be given, from the channels kept.

On calibration data the channels x of the whole model are predicted from the kept channels z of the pruned one, by least
squares around the identity (E maps each kept channel to itself):

    min_D || x - z (E + D) ||^2 + l ||D||^2,      l = 1e-4 of the mean square of z

and the weights that read them become (E + D) W. Readers are refitted in the order of the graph, each on what the ones
before it now put out, so that errors do not pile up. It holds for every linear reader (a matrix, a
convolution of one group), needs no labels and no training, and changes neither shapes nor cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
RIDGE = 1e-4


def reconstruct(
    wiring: Wiring, cuts: Cuts, pruned: ir.Model, values: Values, read: Callable[[ir.Model, str, int], Array]
) -> tuple[ir.Model, int]:
    """The pruned model with readers refitted, and how many were.

    `values` are activations of the whole model; `read` gives those of another model along an axis, at the same
    positions: (positions, size of the axis).
    """
    model = clone(pruned)
    readers: dict[Place, list[Place]] = {}
    for source, weight in _readers(wiring, cuts):
        readers.setdefault(source, []).append(weight)
    count = 0
    for source, weights in readers.items():
        x = values.get((source.value, source.axis))
        if x is None or not isinstance(source.axis, int):
            continue
        mixing = prediction(read(model, source.value, source.axis), x, cuts[source])
        for weight in weights:
            count += _refit(model, wiring, cuts, weight, mixing)
    return model, count


def _refit(model: ir.Model, wiring: Wiring, cuts: Cuts, weight: Place, mixing: Array) -> bool:
    held = model.graph.initializers.get(weight.value)
    array = constant(wiring.values[weight.value])
    if held is None or array is None or not isinstance(weight.axis, int):
        return False
    others = {place.axis: mask for place, mask in cuts.items() if place.value == weight.value and place != weight}
    refitted = take(mixed(array, weight.axis, mixing), others)
    held.const_value = ir.tensor(refitted.astype(array.dtype), name=weight.value)
    return True


def prediction(z: Array, x: Array, cut: Mask) -> Array:
    """E + D of the least squares problem: (kept, all)."""
    identity = np.eye(len(cut))[~cut]
    z, x = z.astype(np.float64), x.astype(np.float64)
    moments = z.T @ z
    ridge = RIDGE * (np.trace(moments) / len(moments) or 1.0)
    change = np.linalg.solve(moments + ridge * np.eye(len(moments)), z.T @ (x - z @ identity))
    return np.asarray(identity + change)


def mixed(weight: Array, axis: int, mixing: Array) -> Array:
    """A weight along whose reading axis the channels of the whole model are replaced by mixtures of those kept."""
    rows = np.moveaxis(weight, axis, 0)
    flat = mixing @ rows.reshape(len(rows), -1).astype(np.float64)
    return np.moveaxis(flat.reshape(-1, *rows.shape[1:]), 0, axis)


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
