"""From the steps of a plan to instructions: kernel calls over views.

Steps are taken in order; the function that `lower` has for an operator emits instructions for it, and may *absorb* the
steps that follow if nobody else reads what lies between (an activation, a residual sum, a requantization). A step that
no function takes becomes a *fallback*: the reference kernel runs it between two stretches of native code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array, Node
from pumice.program import ABSENT, Program, Step
from pumice_cpu.runtime import views
from pumice_cpu.runtime.packing import Packer
from pumice_cpu.runtime.trace import Trace
from pumice_cpu.runtime.views import View

MOST_AXES = 6
QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
REFERENCE = "reference"
"""Kind of the instructions that the reference kernels run."""


@attrs.frozen(eq=False)
class Instruction:
    """One native call, or a fallback."""

    kind: str
    """As in runtime/steps.def, or `REFERENCE`."""
    operands: tuple[View | None, ...]
    """In the order of runtime/api.h."""
    writes: tuple[int, ...]
    """Which operands are written."""
    fields: Mapping[str, Any]
    """Of the struct of arguments."""
    node: str
    """Name of the last node that it computes."""
    op: str
    """Its operator, as reports name it."""
    in_place: tuple[int, ...] = ()
    """Operands whose memory the result may take over."""
    step: Step | None = None
    """Of a fallback."""


@attrs.frozen(eq=False)
class Levels:
    """A matrix quantized while running: its levels, their scale or that of every row, their zero point."""

    values: View
    scale: View
    zero: View | None
    """None: 128, and a scale a row."""


Lower = Callable[["Compiler", Step], bool]
"""Emits what computes a step; False if it cannot, having emitted nothing."""


class Compiler:
    """One compilation: for one set of input shapes."""

    def __init__(
        self, program: Program, steps: Sequence[Step], trace: Trace, packer: Packer, *, exact: bool = True
    ) -> None:
        self.program, self.steps, self.trace, self.packer, self.exact = program, steps, trace, packer, exact
        self.instructions: list[Instruction] = []
        self.views: dict[int, View] = {}
        self.given: dict[int, View] = {}
        """The graph's inputs; one that is an output as well has another view in `views`, that of its copy."""
        self.copies: dict[tuple[View, tuple[int, ...]], View] = {}
        self.levels: dict[View, Levels] = {}
        """Of real numbers that were quantized while running."""
        self.absorbed: set[int] = set()
        self.node = Node(op_type="")
        self.reads = Counter(s for step in steps for s in {*step.inputs, *step.captures} if s != ABSENT)
        self.reads.update(program.outputs)
        self.readers = {s: step for step in steps for s in step.inputs}
        self.producers = {s: step for step in steps for s in step.outputs if s != ABSENT}
        self.index = {id(step): i for i, step in enumerate(steps)}
        self.quantizes = any(step.node.op_type in QUANTIZERS for step in steps)
        """Whether real numbers become levels somewhere."""

    def compile(self, table: Mapping[tuple[str, str], Lower]) -> list[Instruction]:
        """Instructions in order, and a view for every output that does not vary."""
        for slot in self.program.inputs:
            if slot in self.trace.shapes and not self.trace.is_known(slot):
                self.given[slot] = views.fresh(self.trace.shapes[slot], self.trace.dtypes[slot], home="outside")
        self.views.update(self.given)
        for i, step in enumerate(self.steps):
            if i in self.absorbed or all(s == ABSENT or self.trace.is_known(s) for s in step.outputs):
                continue
            self.node = step.node
            lower = table.get((step.node.domain, step.node.op_type))
            if lower is None or not self.settled(step) or not lower(self, step):
                self._fall_back(step)
        self._hand_out()
        return self.instructions

    # --- what is known of values --------------------------------------------------------------------------------------

    def shape(self, slot: int) -> tuple[int, ...]:
        return self.trace.shapes[slot]

    def dtype(self, slot: int) -> np.dtype[Any]:
        return self.trace.dtypes[slot]

    def known(self, slot: int) -> Array | None:
        return None if slot == ABSENT else self.trace.known(slot)

    def is_float(self, *slots: int) -> bool:
        return all(self.dtype(slot) == np.float32 for slot in slots)

    def scalar(self, slot: int) -> float | None:
        """The only element of a known value."""
        value = self.known(slot)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def has_view(self, slot: int) -> bool:
        """Whether the value is there already, at this point of the program."""
        return slot in self.views or self.trace.is_known(slot)

    def view(self, slot: int) -> View:
        """Wherever the value lies, with any strides."""
        if slot not in self.views:
            value = self.known(slot)
            assert value is not None
            self.views[slot] = views.constant(value)
        return self.views[slot]

    def plain(self, slot: int) -> View:
        """The value in C order, copied if it is not."""
        return self.ordered(slot, range(len(self.view(slot).shape)))

    def channels_last(self, slot: int) -> View:
        """The value (N, C, ...) with C fastest, copied if it is not."""
        return self.ordered(slot, views.channels_last(len(self.view(slot).shape)))

    def ordered(self, slot: int, order: Sequence[int]) -> View:
        """The value without gaps, its axes from the slowest to the fastest; copied if it does not lie so."""
        view, order = self.view(slot), tuple(order)
        if view.lies_in(order):
            return view
        if (view, order) not in self.copies:
            self.copies[view, order] = views.fresh(view.shape, view.dtype, order)
            self.transpose(self.copies[view, order], view, order)
        return self.copies[view, order]

    def gapless(self, slot: int) -> View:
        """The value in any order without gaps."""
        view = self.view(slot)
        return view if view.order is not None else self.plain(slot)

    def transpose(self, target: View, source: View, order: Sequence[int]) -> None:
        """Copy between views of one shape; the target has no gaps in this order."""
        array = source.array.transpose(order)
        shape, steps = _merged(array.shape, [s // array.itemsize for s in array.strides])
        assert len(shape) <= MOST_AXES
        self.emit(
            "transpose", target, source, op="Transpose", size=array.itemsize, axes=len(shape),
            shape=shape + [0] * (MOST_AXES - len(shape)), steps=steps + [0] * (MOST_AXES - len(shape)),
        )  # fmt: skip

    # --- emitting -----------------------------------------------------------------------------------------------------

    def result(self, slot: int, order: Sequence[int] | None = None) -> View:
        """New memory for a value without gaps, from the slowest axis to the fastest."""
        self.views[slot] = views.fresh(self.shape(slot), self.dtype(slot), order)
        return self.views[slot]

    def result_like(self, slot: int, view: View) -> View:
        """New memory in the order of a view of the same shape."""
        return self.result(slot, view.order)

    def alias(self, slot: int, root: views.Root, array: Array) -> None:
        """Let a value be part of memory that is there."""
        self.views[slot] = View(root, array)

    def emit(
        self,
        kind: str,
        *operands: View | None,
        writes: Sequence[int] = (0,),
        in_place: Sequence[int] = (),
        op: str | None = None,
        **fields: Any,
    ) -> None:
        self.instructions.append(
            Instruction(
                kind, operands, tuple(writes), fields, self.node.name or self.node.outputs[0],
                op or self.node.op_type, tuple(in_place),
            )
        )  # fmt: skip

    def redirect(self, view: View, place: View) -> bool:
        """Let the only instruction that computes a value write it elsewhere, if it can; nobody else may read it."""
        touching = [
            i for i, ins in enumerate(self.instructions) if any(v and v.root is view.root for v in ins.operands)
        ]
        slots = [slot for slot, known in self.views.items() if known.root is view.root]
        whole = view.root.home == "arena" and view.array.nbytes == view.root.nbytes
        if (
            not whole
            or len(touching) != 1
            or sum(self.reads[slot] for slot in slots) > 1
            or view in self.copies.values()
        ):
            return False
        made = self.instructions[touching[0]]
        if made.operands[0] is not view or made.kind == REFERENCE:
            return False
        fields = made.fields
        if view.order is None or not place.lies_in(view.order):
            step = _pixel_step(place)
            if made.kind != "nhwc" or step is None:
                return False
            fields = {**fields, "epilogue": {**fields["epilogue"], "y_step": step}}
        operands = (place, *made.operands[1:])
        self.instructions[touching[0]] = attrs.evolve(made, operands=operands, fields=fields, in_place=())
        self.views.update(dict.fromkeys(slots, place))
        return True

    # --- steps that follow --------------------------------------------------------------------------------------------

    def reader(self, slot: int) -> Step | None:
        """The step that alone reads a value, if there is one and it can be absorbed."""
        step = self.readers.get(slot)
        if self.reads[slot] != 1 or step is None or step.captures or self.index[id(step)] in self.absorbed:
            return None
        return step if self.settled(step) else None

    def absorb(self, step: Step) -> None:
        """The instruction about to be emitted computes this step, too."""
        self.absorbed.add(self.index[id(step)])
        self.node = step.node

    def drop(self, step: Step) -> None:
        """Nobody needs what the step computes."""
        self.absorbed.add(self.index[id(step)])

    def producer(self, slot: int) -> Step | None:
        return self.producers.get(slot)

    # --- fallbacks and outputs ----------------------------------------------------------------------------------------

    def settled(self, step: Step) -> bool:
        """Whether no value around a step varies, and none is empty."""
        around = [s for s in (*step.inputs, *step.outputs) if s != ABSENT]
        return not step.captures and all(s in self.trace.shapes and 0 not in self.shape(s) for s in around)

    def _fall_back(self, step: Step) -> None:
        given = [s for s in dict.fromkeys((*step.inputs, *step.captures)) if not self.trace.is_known(s)]
        read = [s for s in given if s in self.views]
        operands = [self.plain(s) for s in read]
        for slot in step.outputs:
            if slot in self.trace.shapes:
                self.views[slot] = views.fresh(self.shape(slot), self.dtype(slot), home="outside")
        written = [s for s in step.outputs if s in self.views]
        constants = {s: self.trace.known(s) for s in (*step.inputs, *step.captures) if self.trace.is_known(s)}
        fields = {"written": tuple(written), "read": tuple(read), "constants": constants}
        self.instructions.append(
            Instruction(
                REFERENCE, (*(self.views[s] for s in written), *operands), tuple(range(len(written))), fields,
                step.node.name or step.node.outputs[0], step.node.op_type, step=step,
            )
        )  # fmt: skip

    def _hand_out(self) -> None:
        """Outputs lie in memory of their own, given by the caller."""
        taken: set[int] = set()
        for slot in self.program.outputs:
            if slot not in self.trace.shapes:
                continue
            view = self.view(slot)
            whole = view.is_plain and view.root.home == "arena" and view.array.nbytes == view.root.nbytes
            if whole and id(view.root) not in taken and self.dtype(slot) == view.dtype:
                view.root.home = "outside"
            elif view.array.size and view.dtype != object and not self.trace.is_known(slot):
                self.views[slot] = views.fresh(view.shape, view.dtype, home="outside")
                self.transpose(self.views[slot], view, tuple(range(len(view.shape))))
            taken.add(id(self.views[slot].root))


def _pixel_step(view: View) -> int | None:
    """Elements from pixel to pixel of an image (N, C, ...) whose channels, and nothing else, have a gap behind them."""
    steps = view.array.transpose(views.channels_last(view.array.ndim))
    shape, strides = _merged(steps.shape, [s // steps.itemsize for s in steps.strides])
    return strides[0] if len(shape) == 2 and strides[1] == 1 and shape[1] == view.shape[1] else None


def _merged(shape: Sequence[int], steps: Sequence[int]) -> tuple[list[int], list[int]]:
    """Axes without those of one element, neighbours joined where they run on."""
    joined: list[list[int]] = []
    for extent, step in zip(shape, steps, strict=True):
        if extent == 1:
            continue
        if joined and joined[-1][1] == step * extent:
            joined[-1] = [joined[-1][0] * extent, step]
        else:
            joined.append([extent, step])
    joined = joined or [[1, 1]]
    return [j[0] for j in joined], [j[1] for j in joined]
