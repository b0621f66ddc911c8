"""A run recorded as a CUDA graph: every launch of a plan for inputs of one shape, started again with one call.

A recording has a stream, memory of its own that nothing else is given, and inputs and outputs at fixed places: copy in,
launch, copy out. It may be run by one thread at a time. The plan runs twice before it is recorded, so that every kernel
is compiled and every array that does not depend on the inputs is on the GPU already; while it is being recorded nothing
may be copied to or from the CPU, and whoever tries ends the recording. Nor may anyone wait for the whole GPU meanwhile
but by `finish`: the driver refuses to, and the recording is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pumice.ops.record import Array
from pumice_cuda.placing import reading
from pumice_cuda.transfers import handed_out, is_movable, on_device, overwrite, to_device

if TYPE_CHECKING:
    from pumice.plan import Plan

T = TypeVar("T")
WARM_UPS = 2
_recording = threading.Lock()


class CannotRecord(Exception):
    """The run of a plan is more than launches, or there is no memory for a recording; the text says why."""


def finish() -> None:
    """Wait for everything on the GPU, whichever stream it is on."""
    import cupy

    with _recording:
        cupy.cuda.Device().synchronize()


def record(call: Callable[[], T], stream: Any) -> tuple[Any, T, list[Any]]:
    """The launches of a call as a graph, what it returned, and what it read that others may forget.

    Every launch of the graph writes the arrays that were returned again. `stream` is the current one, and everything
    that the call reads is there.

    Raises:
        CannotRecord: the call is more than launches.
    """
    with _recording, reading() as read:
        stream.begin_capture()
        try:
            found = call()
        except Exception as error:
            _abandon(stream)
            raise CannotRecord(str(error).partition("\n")[0]) from error
        graph = stream.end_capture()
        graph.upload(stream)
        return graph, found, read


def _abandon(stream: Any) -> None:
    """End a recording that went wrong, so that the stream is no longer in its state."""
    import cupy

    try:
        stream.end_capture()
    except cupy.cuda.runtime.CUDARuntimeError:
        return  # it was invalid already, and is over


class Replay:
    """One recording.

    Raises:
        CannotRecord: while it runs, the plan waits for the GPU or copies between it and the CPU; an input is of a type
            that stays on the CPU; the GPU's memory does not suffice.
    """

    def __init__(self, plan: Plan, feeds: Mapping[str, Array]) -> None:
        import cupy

        if left := [name for name, x in feeds.items() if not (on_device(x) or is_movable(x))]:
            raise CannotRecord(f"input '{left[0]}' is of a type that stays on the CPU")
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            try:
                self._inputs = {name: x.copy() if on_device(x) else to_device(x) for name, x in feeds.items()}
                for _ in range(WARM_UPS):
                    plan.run(self._inputs)
            except MemoryError as error:
                raise CannotRecord(f"the memory of the GPU does not suffice: {error}") from error
            self._stream.synchronize()
            self._graph, self._outputs, self._read = record(lambda: plan.run(self._inputs), self._stream)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for other values of the same shapes."""
        with self._stream:
            for name, x in feeds.items():
                overwrite(self._inputs[name], x)
            self._graph.launch(self._stream)
            return {name: handed_out(y) for name, y in self._outputs.items()}
