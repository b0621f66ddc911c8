"""A program ready to run: instructions as C structs over numbered places, with fallbacks between native stretches.

Memory that a run needs is a *state*: an arena and the addresses of all places in it. States are kept and reused, one a
caller at a time, so that any number of threads may run one program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array
from pumice.program import ABSENT, compute, is_array
from pumice_cpu import arrays
from pumice_cpu.native import NativeError, ffi, library
from pumice_cpu.runtime.arena import plan
from pumice_cpu.runtime.compiler import REFERENCE, Instruction
from pumice_cpu.runtime.packing import Packed
from pumice_cpu.runtime.views import Root, View, address


@attrs.define(eq=False)
class State:
    """What one run writes to."""

    arena: Array
    places: Any
    """`void *[]`."""


@attrs.frozen(eq=False)
class Stretch:
    """Native steps from first to last - 1."""

    first: int
    last: int


@attrs.define(eq=False)
class Executable:
    """A compiled program."""

    instructions: tuple[Instruction, ...]
    handle: Any
    """`struct pumice_program *`."""
    segments: tuple[Stretch | Instruction, ...]
    offsets: Mapping[Root, int]
    arena_bytes: int
    roots: Mapping[Root, tuple[tuple[int, int], ...]]
    """Places of every root and their distance from its first byte."""
    alive: list[Any]
    free: list[State] = attrs.field(factory=list)

    def run(
        self,
        bound: Mapping[Root, Array],
        held: dict[Any, Any],
        threads: int,
        times: Callable[[int, float], None] | None = None,
    ) -> None:
        """Run on memory given for the roots from outside.

        Args:
            bound: arrays for inputs and outputs, in C order.
            held: values by slot that fallbacks read and the graph's inputs are among; what they compute is added.
            threads: of one run.
            times: told the number of each instruction and the nanoseconds it took.
        """
        state = self._state()
        for root, array in bound.items():
            self._bind(state, root, array)
        try:
            at = 0
            for segment in self.segments:
                if isinstance(segment, Stretch):
                    self._run_stretch(state, segment, at, threads, times)
                    at += segment.last - segment.first
                else:
                    self._run_reference(state, segment, bound, held, at, times)
                    at += 1
        finally:
            self.free.append(state)

    def limit(self, threads: Sequence[int]) -> None:
        """Hold instructions to so many threads, 0 for as many as a run has; not while it runs."""
        native = (t for i, t in zip(self.instructions, threads, strict=True) if i.kind != REFERENCE)
        for number, count in enumerate(native):
            library().pumice_program_limit(self.handle, number, count)

    def _state(self) -> State:
        try:
            return self.free.pop()
        except IndexError:
            arena = arrays.empty(max(self.arena_bytes, 1), np.uint8)
        count = sum(map(len, self.roots.values()))
        state = State(arena, ffi().new("void *[]", max(count, 1)))
        for root, offset in self.offsets.items():
            self._bind(state, root, arena[offset:])
        for root in self.roots:
            if root.home == "constant":
                self._bind(state, root, root.memory)
        return state

    def _bind(self, state: State, root: Root, array: Array) -> None:
        begin = address(array)
        for place, distance in self.roots.get(root, ()):
            state.places[place] = ffi().cast("void *", begin + distance)

    def _run_stretch(
        self, state: State, stretch: Stretch, at: int, threads: int, times: Callable[[int, float], None] | None
    ) -> None:
        lib, count = library(), stretch.last - stretch.first
        taken = ffi().NULL if times is None else ffi().new("int64_t[]", stretch.last)
        status = lib.pumice_program_run(self.handle, state.places, stretch.first, stretch.last, threads, taken)
        if status:
            raise self._failure(status)
        for i in range(count if times is not None else 0):
            assert times is not None
            times(at + i, taken[stretch.first + i])

    def _failure(self, status: int) -> NativeError:
        if status == library().PUMICE_NO_MEMORY:
            return NativeError("the native runtime ran out of memory; use a smaller batch, or fewer callers at once")
        return NativeError("the native runtime cannot compute this model on these values: an index is out of range")

    def _run_reference(
        self, state: State, instruction: Instruction, bound: Mapping[Root, Array], held: dict[Any, Any], at: int,
        times: Callable[[int, float], None] | None,
    ) -> None:  # fmt: skip
        import time

        began = time.perf_counter_ns()
        step, written, read = instruction.step, instruction.fields["written"], instruction.fields["read"]
        assert step is not None
        operands = instruction.operands[len(written) :]
        slots: dict[int, Any] = {ABSENT: None, **instruction.fields["constants"]}
        slots |= {slot: held[slot] for slot in (*step.inputs, *step.captures) if slot in held}
        slots |= {
            slot: self._array(state, view, bound, held) for slot, view in zip(read, operands, strict=True) if view
        }
        with np.errstate(all="ignore"):
            results = compute(step, slots)  # type: ignore[arg-type]
        for slot, value in zip(step.outputs, results, strict=False):
            if slot == ABSENT:
                continue
            held[slot] = _own(value, state.arena) if is_array(value) else value
            if slot in written:
                view = instruction.operands[written.index(slot)]
                assert view is not None
                held[slot] = held[view.root] = np.ascontiguousarray(held[slot])
                self._bind(state, view.root, held[slot])
        if times is not None:
            times(at, time.perf_counter_ns() - began)

    def _array(self, state: State, view: View, bound: Mapping[Root, Array], held: Mapping[Any, Any]) -> Array:
        """The memory of a view as an array."""
        if view.root.home == "constant":
            return view.array
        if view.root.home == "arena":
            memory = state.arena[self.offsets[view.root] :]
        else:
            memory = (held[view.root] if view.root in held else bound[view.root]).reshape(-1).view(np.uint8)
        return np.ndarray(view.shape, view.dtype, memory, view.offset, view.array.strides)


def _own(value: Array, arena: Array) -> Array:
    """A result that does not lie in the arena, where it would be overwritten."""
    return value.copy() if np.may_share_memory(value, arena) else value


# --- making it --------------------------------------------------------------------------------------------------------


def assemble(instructions: Sequence[Instruction], arena: tuple[Mapping[Root, int], int] | None = None) -> Executable:
    """The executable form of instructions; `arena` as `arena.plan` gives it, if it is known already.

    Raises:
        NativeError: there is no memory.
    """
    offsets, size = arena or plan(instructions)
    places: dict[tuple[Root, int], int] = {}
    native = [i for i in instructions if i.kind != REFERENCE]
    for instruction in native:
        for view in instruction.operands:
            if view is not None:
                places.setdefault((view.root, view.offset), len(places))
    roots: dict[Root, list[tuple[int, int]]] = {}
    for (root, distance), place in places.items():
        roots.setdefault(root, []).append((place, distance))
    alive: list[Any] = []
    lib = library()
    handle = lib.pumice_program_create(len(native))
    if handle == ffi().NULL:
        raise NativeError("there is not enough memory for the program")
    handle = ffi().gc(handle, lib.pumice_program_free)
    for instruction in native:
        _add(handle, instruction, places, alive)
    return Executable(
        tuple(instructions), handle, _segments(instructions), offsets, size,
        {root: tuple(found) for root, found in roots.items()}, alive,
    )  # fmt: skip


def _add(handle: Any, instruction: Instruction, places: Mapping[tuple[Root, int], int], alive: list[Any]) -> None:
    lib = library()
    kind = lib.pumice_step_kind(instruction.kind.encode())
    numbers = [-1 if v is None else places[v.root, v.offset] for v in instruction.operands]
    struct = ffi().new(f"struct pumice_{instruction.kind}_step *", _c_value(instruction.fields, alive))
    if lib.pumice_program_add(handle, kind, numbers, len(numbers), struct):
        raise NativeError(f"there is not enough memory for the step '{instruction.node}'")


def _c_value(value: Any, alive: list[Any]) -> Any:
    """What cffi initialises a field with; arrays and packed weights stay alive with the program."""
    if isinstance(value, Mapping):
        return {name: found for name, v in value.items() if (found := _c_value(v, alive)) is not None}
    if isinstance(value, np.ndarray):
        alive.append(value)
        return arrays.pointer(value)
    if isinstance(value, Packed):
        alive.append(value)
        return value.handle
    return value.item() if isinstance(value, np.generic) else value


def _segments(instructions: Sequence[Instruction]) -> tuple[Stretch | Instruction, ...]:
    found: list[Stretch | Instruction] = []
    at = 0
    for instruction in instructions:
        if instruction.kind == REFERENCE:
            found.append(instruction)
            continue
        at += 1
        if found and isinstance(found[-1], Stretch):
            found[-1] = Stretch(found[-1].first, at)
        else:
            found.append(Stretch(at - 1, at))
    return tuple(found)
