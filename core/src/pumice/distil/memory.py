"""What a distillation will hold in memory, known from shapes before anything runs.

    weights        of teacher and student; the student's once more as they are trained, in float32
    gradients      one float32 for every weight of the student; of 16-bit weights first the weights as they are fed and
                   their gradients, both in 16 bits, then one float32
    optimizer      one for sgd, two for the others
    residuals      what the student's gradients read of its forward run, or less, with checkpoints, for more time
    teacher run    what is alive at once when the teacher runs; nothing of its run is kept

Shapes come from inference with the sizes of a batch filled in, so a network that no machine holds can be planned for as
well. Values that are only another look at the same memory (a reshape, a transpose) count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs
import numpy as np
import onnx_ir as ir

from pumice.autograd import Profile, Tape
from pumice.errors import ModelError
from pumice.model import clone, size, values
from pumice.plan import Plan, compile_plan
from pumice.program import ABSENT, Step
from pumice.prune.sizes import with_sizes
from pumice.registry import registry
from pumice.train.parameters import parameter_names

if TYPE_CHECKING:
    from pumice.steps import Train

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Expand", "Slice", "Split"})
FLOAT = 4
"""Bytes of a number under training."""
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2, "lamb": 2}
"""Arrays of the size of the weights that an optimizer holds."""
Shapes = Mapping[str, tuple[int, ...]]


@attrs.frozen
class Extent:
    """How large a value is."""

    elements: int
    bytes: int
    """In the type that the model gives it."""


Extents = Mapping[str, Extent]


@attrs.frozen(kw_only=True)
class MemoryPlan:
    """Bytes, by what holds them."""

    teacher: int
    teacher_run: int
    student: int
    gradients: int
    optimizer: int
    residuals: Mapping[int, int]
    """At the highest, by the number of segments that the student's steps are cut into; 1 keeps everything."""

    def total(self, residuals: int | None = None, *, streamed: bool = False) -> int:
        """At the highest: either the teacher runs or the student's gradients are computed, never both.

        Args:
            residuals: bytes that gradients may keep; None keeps everything.
            streamed: the teacher's weights are read layer by layer, and hardly count.
        """
        fixed = self.student + self.gradients + self.optimizer + (0 if streamed else self.teacher)
        return fixed + max(self.teacher_run, self.residuals[1] if residuals is None else residuals)

    def fitting(self, limit: int) -> str:
        """What to do to stay within a limit, as a sentence."""
        whole = f"it needs {_gigabytes(self.total())} of {_gigabytes(limit)}"
        if self.total() <= limit:
            return f"{whole}: everything fits"
        for streamed in (False, True):
            for segments, held in sorted(self.residuals.items()):
                needed = self.total(held, streamed=streamed)
                if needed <= limit:
                    ways = [f"memory to {held / 1e6:.0f} (checkpoints)"] * (segments > 1)
                    ways += ["stream to true (the teacher layer by layer)"] * streamed
                    return f"{whole}: set {' and '.join(ways)}, then it needs {_gigabytes(needed)}"
        return f"{whole}, and does not fit: make batches smaller, or the student"

    def rows(self) -> Iterator[tuple[str, int]]:
        """What there is to show, largest matters first."""
        yield from {
            "teacher's weights": self.teacher,
            "teacher's run": self.teacher_run,
            "student's weights": self.student,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
        }.items()
        yield from ((f"residuals, {count} segment{'s' * (count > 1)}", held) for count, held in self.residuals.items())


def planned(teacher: ir.Model, student: ir.Model, settings: Train, inputs: Shapes) -> MemoryPlan:
    """
    Args:
        teacher: left unchanged; no weight of it is read.
        student: likewise.
        settings: the step that trains.
        inputs: the shapes of a batch, by the name of the input.

    Raises:
        ModelError: an input that has no shape here, or a value whose size does not follow from the inputs.
    """
    plan, extents = _sized(student, inputs)
    names = parameter_names(plan)
    trained = sum(extents[name].elements for name in names)
    profile = _profile(Tape(plan, names, training=settings.batch_statistics), extents)
    segments = {count: profile.peak(profile.cuts(count) if count > 1 else ()) for count in _counts(len(plan.steps))}
    teacher_plan, teacher_extents = _sized(teacher, inputs)
    return MemoryPlan(
        teacher=size(teacher).total,
        teacher_run=max(_profile(Tape(teacher_plan, (), outputs=()), teacher_extents).alive, default=0),
        student=size(student).total + FLOAT * trained,
        gradients=FLOAT * trained,
        optimizer=FLOAT * trained * MOMENTS[settings.optimizer],
        residuals=segments,
    )


def _counts(steps: int) -> list[int]:
    return [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= steps]


def _sized(model: ir.Model, inputs: Shapes) -> tuple[Plan, dict[str, Extent]]:
    """The model compiled for inputs of these shapes, without weights, and how large every value is."""
    bare = clone(model)
    for value in bare.graph.inputs:
        shape = inputs.get(str(value.name))
        if shape is None:
            raise ModelError(f"input '{value.name}' has no shape to plan the memory for: say how large a batch is")
        value.shape = ir.Shape(shape)
    for node in bare.graph:
        for value in node.outputs:
            value.shape = None  # what was inferred for other sizes
    for value in bare.graph.initializers.values():
        held = value.const_value
        if held is not None and held.size > 1 and held.dtype.is_floating_point():
            stand_in = np.broadcast_to(np.ones((), held.dtype.numpy()), held.shape.numpy())
            value.const_value = ir.tensor(stand_in, name=value.name)
    sized = with_sizes(bare)
    extents = {
        str(value.name): _extent(value)
        for value in values(sized)
        if value.shape is not None and all(isinstance(d, int) for d in value.shape)
    }
    return compile_plan(sized, ops=registry().ops, kernels=()), extents


def _extent(value: ir.Value) -> Extent:
    assert value.shape is not None
    elements = math.prod(d for d in value.shape if isinstance(d, int))
    return Extent(elements, int(elements * (FLOAT if value.dtype is None else value.dtype.itemsize)))


def _profile(tape: Tape, extents: Extents) -> Profile:
    """As `Profile.of`, from shapes."""
    names, owner = tape.plan.program.names, dict[int, int]()
    for step in tape.steps:
        for slot in step.outputs:
            if slot != ABSENT and names[slot] not in extents:
                raise ModelError(
                    f"the memory cannot be planned for: the size of '{names[slot]}' ({step.node}) does not follow from "
                    f"those of the inputs"
                )
    sizes = {slot: extents[name].bytes if name in extents else 0 for slot, name in enumerate(names)}
    given = {ABSENT, *tape.plan.program.inputs, *tape.plan.initializers.values()}
    live, counted = set[int](), set(given)
    residuals, held = [], []
    for index, step in enumerate(tape.steps):
        held.append(sum(sizes[slot] for slot in {owner[slot] for slot in live} - given))
        for slot in step.outputs:
            owner[slot] = owner.get(step.inputs[0], step.inputs[0]) if step.node.op_type in VIEWS else slot
        kept = set[int]()
        if index in tape.active:
            kept = {owner.get(slot, slot) for slot in _kept(step)} - counted
        residuals.append(sum(sizes[slot] for slot in kept))
        counted |= kept
        live = (live | set(step.outputs)) - set(step.frees) - given
    return Profile(tuple(residuals), tuple(held))


def _kept(step: Step) -> Iterator[int]:
    """Slots that the gradient of a step reads."""
    for what, slots in (("inputs", step.inputs), ("outputs", step.outputs)):
        read = getattr(step.vjp, what, None)
        yield from slots if read is None else (slots[i] for i in read if i < len(slots))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def available_bytes() -> int:
    """What this machine has free."""
    import psutil

    return int(psutil.virtual_memory().available)
