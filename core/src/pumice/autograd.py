"""Reverse-mode differentiation of a plan.

With L the loss, every slot gets a gradient dL/d(slot): the sum, over the steps that read it, of what their `vjp` sends
back. One loop over the steps in reverse does it all. A step takes part if it lies on a path from something that
gradients are wanted for to an output; what else it needs, its `Vjp` says, and only that is kept from the forward run:

    tape = Tape(plan, wrt=["w", "b"])
    outputs, pull = tape.forward({"x": x})
    gradients = pull({"y": dy})                  # {"w": dw, "b": db}

Residuals are freed as the loop passes them, so memory is that of the forward run and falls from there.

Checkpointing trades time for memory. The steps are cut into segments; the forward run keeps only what crosses the cuts,
and the loop, before it enters a segment, runs it forward again and keeps its residuals. With n steps and k equal
segments memory is about (k + n / k) residuals instead of n, for one more forward run. The same functions see the same
arrays, so the gradients are the same, bit for bit.

In training, batch normalisation uses the statistics of the batch, whatever the graph says, and `Pullback.updates` holds
the running statistics that result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.dispatch import implementation
from pumice.errors import DataError, ModelError, UnsupportedOp, nearest
from pumice.ops import OpTable
from pumice.ops.dtypes import is_float
from pumice.ops.gradient import zeros
from pumice.ops.record import Kernel, Node, Outputs, ghost
from pumice.plan import Plan
from pumice.program import ABSENT, Step, compute

Slots = dict[int, Any]
Gradients = dict[str, Any]


@attrs.frozen(eq=False)
class Active:
    """A step that gradient flows through."""

    step: Step
    wanted: tuple[bool, ...]
    """Which inputs it flows on to."""


@attrs.frozen(eq=False)
class Residual:
    """What the gradient of one step reads; everything else in it is a ghost."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    def arrays(self) -> Iterable[Any]:
        return (x for x in (*self.inputs, *self.outputs) if getattr(x, "ndim", 0) and any(x.strides))


class Tape:
    """A plan prepared for differentiation. Holds no arrays of a run: any number of threads may share one."""

    def __init__(
        self,
        plan: Plan,
        wrt: Iterable[str],
        *,
        outputs: Iterable[str] | None = None,
        training: bool = False,
        segments: int = 1,
        budget: int | None = None,
    ) -> None:
        """
        Args:
            plan: what to differentiate.
            wrt: names of inputs and initializers of floating point.
            outputs: the outputs that have a gradient; None: all.
            training: whether batch normalisation uses the statistics of the batch.
            segments: into how many parts, about equal in bytes, the steps are cut; 1 keeps every residual.
            budget: bytes that residuals may take at most; as few segments as possible are used.

        Raises:
            UnsupportedOp: an operator on the way has no gradient; the path from the output to it is named.
            ModelError: a name that the plan does not have.
        """
        self.plan = plan
        self.wrt = {name: _slot_of(plan, name) for name in wrt}
        self.steps = tuple(_in_training(s) for s in plan.steps) if training else plan.steps
        self.ends = dict(zip(plan.output_names, plan.program.outputs, strict=True))
        self.outputs = tuple(plan.output_names if outputs is None else outputs)
        self.active = _activity(self.steps, set(self.wrt.values()), {self.ends[name] for name in self.outputs}, plan)
        self._segments, self._budget = segments, budget
        self._known_cuts: dict[Any, tuple[int, ...]] = {}

    def forward(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], Pullback]:
        """The outputs, and the function that turns their gradients into those of `wrt`.

        Raises:
            DataError: as `Plan.run`; also a budget that no number of segments meets.
        """
        slots = _start(self.plan, feeds)
        pull = Pullback(self, {name: ghost(slots[slot]) for name, slot in self.wrt.items()}, self.cuts(feeds))
        with np.errstate(all="ignore"):
            pull.run_forward(slots)
        return {name: slots[slot] for name, slot in self.ends.items()}, pull

    def cuts(self, feeds: Mapping[str, Any]) -> tuple[int, ...]:
        """The first step of every segment but the first, for inputs of these sizes."""
        if self._segments <= 1 and self._budget is None:
            return ()
        key = tuple((name, x.shape) for name, x in sorted(feeds.items()))
        if key not in self._known_cuts:
            self._known_cuts[key] = self._plan_cuts(feeds)
        return self._known_cuts[key]

    def _plan_cuts(self, feeds: Mapping[str, Any]) -> tuple[int, ...]:
        profile = Profile.of(self, feeds)
        if self._budget is None:
            return profile.cuts(self._segments)
        best = profile.peak(())
        for segments in range(1, len(self.steps) + 1):
            cuts = profile.cuts(segments)
            if (peak := profile.peak(cuts)) <= self._budget:
                return cuts
            best = min(best, peak)
        raise DataError(
            f"the gradients of this model need {best:,} bytes of residuals at least, more than the {self._budget:,} "
            f"allowed: use smaller batches, or allow more"
        )


class Pullback:
    """Turns gradients of the outputs into gradients of `wrt`; may be called once."""

    def __init__(self, tape: Tape, wrt: Mapping[str, Any], cuts: tuple[int, ...]) -> None:
        self.updates: dict[str, Any] = {}
        """New running statistics of batch normalisation, by the name of the initializer (training only)."""
        self._tape, self._wrt = tape, wrt
        bounds = (0, *cuts, len(tape.steps))
        self.segments = list(itertools.pairwise(bounds))
        self._entries: list[list[Any]] = []
        self.residuals: dict[int, Residual] = {}

    def run_forward(self, slots: list[Any]) -> None:
        for number, (start, stop) in enumerate(self.segments):
            last = number == len(self.segments) - 1
            if not last:
                self._entries.append(list(slots))
            self._run(slots, start, stop, keep=last, note=True)

    def _run(self, slots: list[Any], start: int, stop: int, *, keep: bool, note: bool) -> None:
        tape = self._tape
        for index in range(start, stop):
            step = tape.steps[index]
            inputs, outputs = _execute(step, slots, index in tape.active)
            if note and step.node.op_type == "BatchNormalization" and step.node.get("training_mode", 0):
                names = (tape.plan.program.names[slot] for slot in step.inputs[3:5])
                self.updates |= dict(zip(names, outputs[1:3], strict=True))
            if keep and index in tape.active:
                self.residuals[index] = _residual(step, inputs, outputs)
            for slot in step.frees:
                slots[slot] = None

    def __call__(self, grads: Mapping[str, Any]) -> Gradients:
        """The gradient of every name in `wrt`, zeros where the loss does not depend on it.

        Args:
            grads: the gradient of each output that has one, in the output's shape.
        """
        tape = self._tape
        flowing: Slots = {}
        for name, grad in grads.items():
            if name not in tape.outputs:
                raise ModelError(f"output '{name}' was not asked to have a gradient{nearest(name, tape.outputs)}")
            _add(flowing, tape.ends[name], grad)
        with np.errstate(all="ignore"):
            while self.segments:
                start, stop = self.segments.pop()
                if len(self._entries) > len(self.segments):  # every segment but the last is run again
                    self._run(self._entries.pop(), start, stop, keep=True, note=False)
                self._pull(flowing, start, stop)
        return {name: flowing[slot] if slot in flowing else zeros(self._wrt[name]) for name, slot in tape.wrt.items()}

    def _pull(self, flowing: Slots, start: int, stop: int) -> None:
        for index in range(stop - 1, start - 1, -1):
            if index not in self._tape.active:
                continue
            active, residual = self._tape.active[index], self.residuals.pop(index)
            grads = [flowing.pop(s, None) for s in active.step.outputs]
            if all(g is None for g in grads):
                continue
            assert active.step.vjp is not None
            found = active.step.vjp(active.step.node, residual.inputs, residual.outputs, grads, active.wanted)
            for slot, want, x, grad in zip(active.step.inputs, active.wanted, residual.inputs, found, strict=True):
                if want and grad is not None:
                    _add(flowing, slot, grad.astype(x.dtype, copy=False) if is_float(x.dtype) else grad)


def _start(plan: Plan, feeds: Mapping[str, Any]) -> list[Any]:
    """Every slot before the first step."""
    slots = list(plan.program.template)
    for slot, value in plan.filled(feeds):
        slots[slot] = value
    return slots


def _add(flowing: Slots, slot: int, grad: Any) -> None:
    flowing[slot] = flowing[slot] + grad if slot in flowing else grad


def _execute(step: Step, slots: list[Any], active: bool) -> tuple[list[Any], Sequence[Any]]:
    """Run one step; the results go into the slots. Returns what it read and all that it returned."""
    inputs = [slots[i] for i in step.inputs]
    outputs: Sequence[Any] = compute(step, slots)
    if active and any(i >= len(outputs) or outputs[i] is None for i in getattr(step.vjp, "outputs", None) or ()):
        assert step.op.forward is not None
        outputs = step.op.forward(step.node, *inputs)  # the kernel does not return what the gradient reads
    for slot, value in zip(step.outputs, outputs, strict=False):
        if slot != ABSENT:
            slots[slot] = value
    return inputs, outputs


def _residual(step: Step, inputs: Sequence[Any], outputs: Sequence[Any]) -> Residual:
    def chosen(values: Sequence[Any], what: str) -> tuple[Any, ...]:
        read = _read(step.vjp, what, len(values))
        return tuple(x if i in read else ghost(x) for i, x in enumerate(values))

    return Residual(chosen(inputs, "inputs"), chosen(outputs, "outputs"))


def _read(vjp: Any, what: str, count: int) -> Sequence[int]:
    read = getattr(vjp, what, None)
    return range(count) if read is None else read


# --- which steps take part --------------------------------------------------------------------------------------------


def _slot_of(plan: Plan, name: str) -> int:
    slots = dict(zip((i.name for i in plan.inputs), plan.program.inputs, strict=True)) | dict(plan.initializers)
    if name not in slots:
        raise ModelError(f"the model has no input or initializer '{name}' that its outputs use{nearest(name, slots)}")
    return slots[name]


def _in_training(step: Step) -> Step:
    """Batch normalisation with the statistics of the batch, as the step's operator computes it."""
    if not _normalises_batches(step):
        return step
    assert step.op.forward is not None
    return attrs.evolve(step, node=_training_node(step), call=step.op.forward)


def with_training_kernel(step: Step, table: OpTable, kernels: Sequence[Kernel]) -> Step:
    """Batch normalisation whose operator, when it trains, is computed by the best kernel that takes it.

    The kernel that a plan chooses for the step itself is one for stored statistics. Table and kernels are those of
    `dispatch.implementation`.
    """
    if not _normalises_batches(step):
        return step
    op, training = implementation(_training_node(step), [None] * len(step.inputs), table, kernels)

    def forward(node: Node, *arrays: Any) -> Outputs:
        assert op.forward is not None
        return (training if node.get("training_mode", 0) else op.forward)(node, *arrays)

    return attrs.evolve(step, op=attrs.evolve(step.op, forward=forward))


def _normalises_batches(step: Step) -> bool:
    return (step.node.domain, step.node.op_type) == ("", "BatchNormalization")


def _training_node(step: Step) -> Node:
    return attrs.evolve(step.node, attributes={**step.node.attributes, "training_mode": 1})


def _activity(steps: Sequence[Step], sources: set[int], ends: set[int], plan: Plan) -> dict[int, Active]:
    """By index, every step on a path from a source to an end."""
    reached, flows = set(sources), {}
    for index, step in enumerate(steps):
        wrt = _read(step.vjp, "wrt", len(step.inputs))
        wanted = tuple(slot in reached and i in wrt for i, slot in enumerate(step.inputs))
        if any(wanted) or any(slot in reached for slot in step.captures):
            flows[index] = wanted
            reached |= {slot for slot in step.outputs if slot != ABSENT}
    useful, found = set(ends), {}
    for index in reversed(range(len(steps))):
        step = steps[index]
        if index in flows and useful.intersection(step.outputs):
            if step.vjp is None or step.captures:
                raise UnsupportedOp(_no_gradient(step, steps[index + 1 :], ends, plan))
            found[index] = Active(step, flows[index])
            useful |= {slot for slot, want in zip(step.inputs, flows[index], strict=True) if want}
    return found


def _no_gradient(step: Step, later: Sequence[Step], ends: set[int], plan: Plan) -> str:
    """The sentence that refuses, with the shortest way from an output back to the step."""
    ways: dict[int, list[str]] = {slot: [f"output '{plan.program.names[slot]}'"] for slot in ends}
    for above in reversed(later):
        known = [ways[slot] for slot in above.outputs if slot in ways]
        if known:
            way = [*min(known, key=len), str(above.node)]
            for slot in above.inputs:
                if slot not in ways or len(way) < len(ways[slot]):
                    ways[slot] = way
    path = min((ways[slot] for slot in step.outputs if slot in ways), key=len)
    shown = path if len(path) <= 6 else [*path[:3], f"{len(path) - 5} more", *path[-2:]]
    return (
        f"{step.node} has no gradient here, and training needs one, on the way {' <- '.join([*shown, 'it'])}; "
        f"install a plugin that gives the operator a `vjp`, or freeze what lies before it"
    )


# --- where to cut -----------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Profile:
    """Bytes that differentiation keeps, step by step, for inputs of one size."""

    residuals: tuple[int, ...]
    """What each step adds, an array that several steps keep counted at the first."""
    alive: tuple[int, ...]
    """Computed values that later steps read, before each step."""

    @classmethod
    def of(cls, tape: Tape, feeds: Mapping[str, Any]) -> Profile:
        """Runs the plan once, keeping nothing."""
        slots = _start(tape.plan, feeds)
        held = _Held.of(slots)
        counted: set[Any] = {None}
        residuals, alive = [], []
        with np.errstate(all="ignore"):
            for index, step in enumerate(tape.steps):
                alive.append(held.bytes(held.blocks.values(), {None}))
                inputs, outputs = _execute(step, slots, index in tape.active)
                results = held.add(index, step, inputs, outputs)
                kept: list[Any] = []
                if index in tape.active:
                    kept = [held.blocks.get(step.inputs[i]) for i in _read(step.vjp, "inputs", len(inputs))]
                    kept += [results[i] for i in _read(step.vjp, "outputs", len(outputs)) if i < len(results)]
                residuals.append(held.bytes(kept, counted))
                counted.update(kept)
                for slot in step.frees:
                    slots[slot] = None
                    held.blocks.pop(slot, None)
        return cls(tuple(residuals), tuple(alive))

    def cuts(self, segments: int) -> tuple[int, ...]:
        """Cuts into about equal parts; each is moved to the place nearby where the least is alive."""
        total = np.cumsum(self.residuals)
        reach = max(1, len(self.residuals) // (4 * segments))
        found = set()
        for part in range(1, segments):
            middle = int(np.searchsorted(total, total[-1] * part / segments))
            near = range(max(1, middle - reach), min(len(self.residuals), middle + reach + 1))
            found.add(min(near, key=lambda i: (self.alive[i], abs(i - middle)), default=middle))
        return tuple(sorted(found))

    def peak(self, cuts: tuple[int, ...]) -> int:
        """Bytes held when the loop enters the segment where this is largest."""
        bounds = (0, *cuts, len(self.residuals))
        held = [sum(self.alive[cut] for cut in bounds[1 : i + 1]) for i in range(len(bounds) - 1)]
        parts = [sum(self.residuals[start:stop]) for start, stop in itertools.pairwise(bounds)]
        return max(map(sum, zip(held, parts, strict=True)))


@attrs.frozen(eq=False)
class _Held:
    """Which block of memory each slot refers to; several may share one, as the input and the output of a Reshape do."""

    blocks: dict[int, Any]
    """By slot: (step, output) that made it, or None where it was there before the run."""
    sizes: dict[Any, int]

    @classmethod
    def of(cls, slots: Sequence[Any]) -> _Held:
        return cls(dict.fromkeys(range(len(slots))), {})

    def add(self, index: int, step: Step, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """Note what a step returned; its blocks, output by output."""
        owners = {_owner(x): self.blocks.get(slot) for slot, x in zip(step.inputs, inputs, strict=True)}
        made = [owners.get(_owner(y), (index, i)) for i, y in enumerate(outputs)]
        for block, y in zip(made, outputs, strict=True):
            self.sizes.setdefault(block, getattr(y, "nbytes", 0))
        self.blocks.update(zip(step.outputs, made, strict=False))
        return made

    def bytes(self, blocks: Iterable[Any], apart_from: set[Any]) -> int:
        return sum(self.sizes[block] for block in set(blocks) - apart_from)


def _owner(x: Any) -> int:
    """Identifies the memory behind an array, while it lives."""
    while getattr(x, "base", None) is not None and hasattr(x.base, "nbytes"):
        x = x.base
    return id(x)
