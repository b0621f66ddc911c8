"""What one run tells about all runs on inputs of the same shapes: shapes, types, what never changes.

A value is *known* if it follows from constants and shapes alone: then it is computed here and never again. It *varies*
if its shape follows from data (NonZero, a loop, a Reshape to a computed shape): then nothing about it is settled in
advance. Everything else has one shape for these input shapes, which the run shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array
from pumice.program import ABSENT, Program, Step, compute, is_array

RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli Dropout".split()
)
VARYING = frozenset("NonZero Compress Unique NonMaxSuppression If Loop Scan StringSplit".split())
SHAPED_BY = {
    "Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "Tile": (1,), "Pad": (1, 3), "Resize": (1, 2, 3),
    "Upsample": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "TopK": (1,), "OneHot": (1,), "Unsqueeze": (1,),
    "Squeeze": (1,), "Split": (1,), "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,), "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,), "CenterCropPad": (1,), "STFT": (1, 3), "DFT": (1, 2), "HannWindow": (0,),
    "HammingWindow": (0,), "BlackmanWindow": (0,), "MelWeightMatrix": (0, 1), "AffineGrid": (1,), "MaxUnpool": (2,),
    "SplitToSequence": (1,), "Col2Im": (1, 2),
}  # fmt: skip
"""Inputs whose values, and not only shapes, settle the shape of the result."""
SMALL = 1 << 16
"""Bytes of a known value that are kept; larger ones are computed again when they are asked for."""


@attrs.define(eq=False)
class Trace:
    """By slot."""

    steps: Sequence[Step]
    shapes: dict[int, tuple[int, ...]] = attrs.field(factory=dict)
    """Of values that do not vary."""
    dtypes: dict[int, np.dtype[Any]] = attrs.field(factory=dict)
    constants: dict[int, Array] = attrs.field(factory=dict)
    """Known values that are kept: weights, and what is small."""
    makers: dict[int, Step] = attrs.field(factory=dict)
    """Steps that compute the known values which are not kept."""

    def is_known(self, slot: int) -> bool:
        return slot in self.constants or slot in self.makers

    def known(self, slot: int) -> Array | None:
        """The value, if it is known."""
        if slot in self.constants:
            return self.constants[slot]
        step = self.makers.get(slot)
        if step is None:
            return None
        found = compute(step, {i: self.known(i) for i in {*step.inputs, *step.captures}})  # type: ignore[arg-type]
        return found[step.outputs.index(slot)]  # type: ignore[no-any-return]

    def see(self, slot: int, value: Array) -> None:
        self.shapes[slot], self.dtypes[slot] = value.shape, value.dtype


def trace(program: Program, steps: Sequence[Step], filled: Mapping[int, Any]) -> Trace:
    """Run the steps once on the inputs, by slot."""
    found = Trace(steps)
    slots = list(program.template)
    for slot, value in enumerate(slots):
        if is_array(value):
            found.see(slot, value)
            found.constants[slot] = value
    for slot, value in filled.items():
        slots[slot] = value
        if is_array(value):
            found.see(slot, value)
    with np.errstate(all="ignore"):
        for step in steps:
            _observe(found, step, slots)
            for slot in step.frees:
                slots[slot] = None
    return found


def _observe(found: Trace, step: Step, slots: list[Any]) -> None:
    results = compute(step, slots)
    knows, varies = _is_known(found, step), _varies(found, step)
    for slot, value in zip(step.outputs, results, strict=False):
        if slot == ABSENT:
            continue
        slots[slot] = value
        if varies or not is_array(value):
            continue
        found.see(slot, value)
        if knows and value.nbytes <= SMALL:
            found.constants[slot] = value
        elif knows:
            found.makers[slot] = step


def _is_known(found: Trace, step: Step) -> bool:
    kind = step.node.op_type
    if kind in RANDOM or step.captures:
        return False
    if kind in {"Shape", "Size"}:
        return step.inputs[0] in found.shapes
    return all(slot == ABSENT or found.is_known(slot) for slot in step.inputs)


def _varies(found: Trace, step: Step) -> bool:
    kind = step.node.op_type
    if kind in VARYING or step.captures or any(s != ABSENT and s not in found.shapes for s in step.inputs):
        return not _is_known(found, step)
    shaping = [step.inputs[i] for i in SHAPED_BY.get(kind, ()) if i < len(step.inputs)]
    return not all(slot == ABSENT or found.is_known(slot) for slot in shaping)
