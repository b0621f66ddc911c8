"""A program for one set of input shapes, with the names of what goes in and comes out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import attrs

from pumice.errors import DataError, nearest
from pumice.ops.record import Array
from pumice_cpu import arrays, native
from pumice_cpu.runtime.executable import Executable
from pumice_cpu.runtime.timings import limits
from pumice_cpu.runtime.views import View

PROFILE_RUNS = 5


@attrs.frozen(kw_only=True)
class Timed:
    """One instruction of a profile."""

    node: str
    op: str
    kind: str
    """The native function, or `reference`."""
    microseconds: float


@attrs.frozen(eq=False)
class Compiled:
    """What a session runs."""

    executable: Executable
    inputs: Mapping[str, tuple[int, View | None]]
    """Slot and place of every input; None where only reference kernels read it."""
    outputs: Mapping[str, View | Array | int]
    """A view in memory of its own, a constant, or the slot of a value whose shape varies."""
    signatures: tuple[str, ...]
    """Of every instruction: see `timings`."""
    _settled: list[int] = attrs.field(factory=list, init=False)
    _settling: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def run(
        self, feeds: Mapping[str, Array], out: Mapping[str, Array] | None, threads: int, times: Any = None
    ) -> dict[str, Array]:
        """All outputs by name; the feeds are those that the program was compiled for.

        Raises:
            DataError: an array in `out` does not fit.
            NativeError: the values cannot be computed with.
        """
        bound: dict[Any, Array] = {}
        held: dict[Any, Any] = {}
        for name, (slot, view) in self.inputs.items():
            held[slot] = feeds[name]
            if view is not None:
                held[slot] = bound[view.root] = arrays.contiguous(feeds[name], f"input '{name}'")
        if out is not None:
            for name in out:
                if name not in self.outputs:
                    raise DataError(f"the model has no output '{name}'{nearest(name, self.outputs)}")
        views = {name: where for name, where in self.outputs.items() if isinstance(where, View)}
        results = {name: _room(name, view, out) for name, view in views.items()}
        for name, view in views.items():
            bound.setdefault(view.root, results[name])
        self.executable.run(bound, held, threads, times)
        return {name: self._answer(name, results, held, out) for name in self.outputs}

    def _answer(
        self, name: str, results: Mapping[str, Array], held: Mapping[Any, Any], out: Mapping[str, Array] | None
    ) -> Any:
        where = self.outputs[name]
        if isinstance(where, View):
            if where.root in held:  # a reference kernel computed it in memory of its own
                results[name][...] = held[where.root].reshape(where.shape)
            return results[name]
        value = held[where] if isinstance(where, int) else where
        if out is not None and name in out:
            out[name][...] = value
            return out[name]
        return value

    def settle(self, feeds: Mapping[str, Array], threads: int) -> None:
        """Before the first run with so many threads: find the steps that are quicker with one."""
        if threads in self._settled:
            return
        with self._settling:
            if threads not in self._settled:
                self.executable.limit(limits(self.signatures, threads, lambda count: self._times(feeds, count)))
                self._settled[:] = [threads]

    def _times(self, feeds: Mapping[str, Array], threads: int) -> list[float]:
        """Microseconds of every instruction, in one run."""
        found = [0.0] * len(self.signatures)

        def note(number: int, nanoseconds: float) -> None:
            found[number] = nanoseconds / 1e3

        self.run(feeds, None, threads, note)
        return found

    def profile(self, feeds: Mapping[str, Array], threads: int) -> list[Timed]:
        """Every instruction and its time, in the order of execution: the mean of a few runs after a warm-up."""
        instructions = self.executable.instructions
        self.run(feeds, None, threads)
        rounds = [self._times(feeds, threads) for _ in range(PROFILE_RUNS)]
        return [
            Timed(node=i.node, op=i.op, kind=i.kind, microseconds=sum(times) / PROFILE_RUNS)
            for i, times in zip(instructions, zip(*rounds, strict=True), strict=True)
        ]


def _room(name: str, view: View, out: Mapping[str, Array] | None) -> Array:
    given = None if out is None else out.get(name)
    if given is None:
        return arrays.empty(view.shape, view.dtype)
    if given.shape != view.shape or given.dtype != view.dtype or not given.flags.c_contiguous:
        raise DataError(
            f"output '{name}' is {view.dtype}{list(view.shape)}; the array given for it is "
            f"{given.dtype}{list(given.shape)} or has gaps: give one of its shape and type, in C order"
        )
    return given


def describe(threads: int | None) -> str:
    """What really runs."""
    count = threads or native.threads()
    return f"pumice native runtime, {native.level()}, {count} thread{'s' if count > 1 else ''}"
