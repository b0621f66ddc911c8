"""Students made from their teacher: shorter, narrower, or a network of a named family grown for its inputs.

Shorter: layers (`trunk.layers`) are left out, and what read the end of one reads its beginning. Of layers that repeat
each other, those that stay are spread evenly from the first to the last; of residual blocks that differ, those with the
fewest weights go, which know least and, where pictures are still large, take longest. Narrower: channels are removed by
the pruning algebra, which remembers the indices it kept. In both the student begins with the teacher's weights. A
network grown from a description begins with random ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from pumice.distil.compatibility import aligned
from pumice.distil.trunk import Layer, layers
from pumice.errors import ModelError
from pumice.model import infer_shapes, load, remove_unread, replace_value, simplify
from pumice.prune.sizes import with_sizes
from pumice.steps import Prune

if TYPE_CHECKING:
    from pumice.pipeline import RunContext


def opened(path: Path, like: ir.Model, seed: int) -> ir.Model:
    """The student of an ONNX file or of a description in TOML, with inputs and outputs called as those of the teacher.

    Raises:
        PumiceError: a file that cannot be read, or a description that makes no network.
    """
    if path.suffix == ".toml":
        from pumice.distil.architectures import grown

        return grown(path, like, seed)
    student = load(path)
    simplify(student, fold=False)
    return aligned(student, like)


def shortened(model: ir.Model, share: float, *, strict: bool = True) -> ir.Model:
    """The model with a share of the layers of every kind, at least one of each that repeat.

    Raises:
        ModelError: no layer can be left out, and `strict` asks for it.
    """
    short = with_sizes(model)
    ends: dict[ir.Value, ir.Value] = {}
    for layer in _left_out(layers(short), share):
        start = ends.get(layer.start, layer.start)
        ends[layer.end] = start
        replace_value(layer.end, start)
    if strict and not ends:
        raise ModelError(
            f"no layer can be left out of this network to keep {share:.0%} of them: it has too few that repeat or are "
            f"residual; set width instead, or give a student"
        )
    remove_unread(short)
    return infer_shapes(short)


def narrowed(model: ir.Model, share: float, context: RunContext) -> ir.Model:
    """The model with a share of its channels, those that matter least removed."""
    return Prune(ratio=1 - share).run(model, context)


def _left_out(found: list[Layer], share: float) -> list[Layer]:
    gone = []
    for kind in sorted({layer.kind for layer in found}):
        same = [layer for layer in found if layer.kind == kind]
        keep = max(1 if kind else 0, round(share * len(same)))
        if kind:
            stay = {round(place) for place in np.linspace(0, len(same) - 1, keep)}
        else:
            stay = set(sorted(range(len(same)), key=lambda number: -same[number].weights)[:keep])
        gone += [layer for number, layer in enumerate(same) if number not in stay]
    return sorted(gone, key=found.index)


def weights(model: ir.Model) -> int:
    """Numbers that a model holds."""
    held = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.size for tensor in held if tensor is not None)
