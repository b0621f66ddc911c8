"""Training steps replayed: the forward and the backward pass of a tape as two CUDA graphs.

A step of a network is thousands of launches, of which most take the CPU longer than the GPU. The first steps with
batches of a shape run launch by launch, so that everything is compiled and laid out; then both passes are recorded, and
from then on a step copies its inputs over those of the recording, starts one graph, has the objective computed as ever,
and starts the other. What it gives are copies, and the numbers are the same, bit for bit.

A recording keeps the memory of a step, so a tape has one, of the first shape that comes often enough, and only where it
takes no more than half of what is free and the other half suffices for the update. What draws random numbers is not
recorded, since every replay would draw the same. What cannot be recorded runs launch by launch, with one line in the
log.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pumice.autograd import Gradients, Pullback, Tape
from pumice.errors import PumiceError
from pumice_cuda.runtime.replay import CannotRecord, record
from pumice_cuda.transfers import finish_stream, is_movable, on_device, overwrite, to_device

STEPS = 2
"""With batches of one shape, before they are recorded."""
UPDATED_BYTES = 12
"""For each element of a parameter, what its gradients and their update take beside a recording."""
RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
Shapes = tuple[tuple[str, Any, str], ...]
_log = logging.getLogger("pumice.cuda")


class RecordedTape(Tape):
    """A tape for one thread, whose passes are recorded when they have come a few times.

    A step is a pass forward and then its pass backward; another pass forward ends the step before.
    """

    def __init__(self, tape: Tape) -> None:
        vars(self).update(vars(tape))
        self._plain = tape
        self._came: Counter[Shapes] = Counter()
        self._asked: set[str] = set()
        """Outputs that had a gradient."""
        self._last: dict[str, Any] = {}
        """Weak references to the parameters of the last step."""
        self._recording: _Recording | None = None
        drawing = [step.node for step in tape.steps if step.node.op_type.startswith(RANDOM)]
        self._refusal = f"{drawing[0]} draws random numbers" if drawing else ""

    @property
    def recorded_bytes(self) -> int:
        """What the recording keeps."""
        return 0 if self._recording is None else self._recording.bytes

    def forward(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], Pullback]:
        shapes: Shapes = tuple((name, x.shape, x.dtype.str) for name, x in sorted(feeds.items()))
        if self._recording is None and not self._refusal and self._came[shapes] >= STEPS:
            stay = {name for name, known in self._last.items() if known() is feeds.get(name)}
            try:
                self._recording = _Recording(self._plain, feeds, shapes, stay, self._asked)
            except CannotRecord as refusal:
                self._give_up(str(refusal))
        if self._recording is not None and self._recording.shapes == shapes:
            if self._recording.reads_these(feeds):
                return self._recording.forward(feeds)
            self._give_up("parameters have come to lie elsewhere")
        try:
            outputs, pull = self._plain.forward(feeds)
        except MemoryError:
            if self._recording is None:
                raise
            self._give_up("its memory is needed for batches of other shapes")
            outputs, pull = self._plain.forward(feeds)
        self._last = {name: weakref.ref(x) for name, x in feeds.items() if name in self.wrt and on_device(x)}
        return outputs, _Noting(pull, self._came, shapes, self._asked)

    def _give_up(self, refusal: str) -> None:
        self._recording, self._refusal = None, refusal
        _log.info("steps are not recorded: %s", refusal)


class _Noting(Pullback):
    """Notes that a step has come to its end, and which outputs had a gradient."""

    def __init__(self, pull: Pullback, came: Counter[Shapes], shapes: Shapes, asked: set[str]) -> None:
        self._own, self._came, self._shapes, self._asked, self.updates = pull, came, shapes, asked, pull.updates

    def __call__(self, grads: Mapping[str, Any]) -> Gradients:
        found = self._own(grads)
        self._came[self._shapes] += 1
        self._asked.update(grads)
        return found


class _Recording:
    """Both passes for inputs of some shapes.

    Raises:
        CannotRecord: a pass looks into arrays, an input is of a type that stays on the CPU, or memory is short.
    """

    def __init__(self, tape: Tape, feeds: Mapping[str, Any], shapes: Shapes, stay: set[str], asked: set[str]) -> None:
        import cupy

        if left := [name for name, x in feeds.items() if not (on_device(x) or is_movable(x))]:
            raise CannotRecord(f"input '{left[0]}' is of a type that stays on the CPU")
        self.shapes, self.step, self._tape, self._stay = shapes, 0, tape, stay
        stream = cupy.cuda.Stream(non_blocking=True)
        finish_stream()
        try:
            self._pool, half = cupy.cuda.MemoryPool(), _free_bytes() // 2
            if half < UPDATED_BYTES * sum(feeds[name].size for name in tape.wrt if name in feeds):
                raise CannotRecord("the update of the parameters needs the memory")
            self._pool.set_limit(size=max(1, half))
            with cupy.cuda.using_allocator(self._pool.malloc), stream:
                self._feeds = {name: x if name in stay else _copied(x) for name, x in feeds.items()}
                outputs, pull = tape.forward(self._feeds)
                self._grads = {name: outputs[name].copy() for name in asked}
                pull(self._grads)
                del outputs, pull
                self._forward, (self._outputs, pull), self._read = record(lambda: tape.forward(self._feeds), stream)
                self._backward, self._found, read = record(lambda: pull(self._grads), stream)
                stream.synchronize()
        except MemoryError as error:
            raise CannotRecord(f"a step takes more than half of the memory that is free: {error}") from error
        self._read += read
        self._updates = pull.updates

    @property
    def bytes(self) -> int:
        return int(self._pool.total_bytes())

    def reads_these(self, feeds: Mapping[str, Any]) -> bool:
        """Whether what it reads in its place is what is given."""
        return all(feeds[name] is self._feeds[name] for name in self._stay)

    def forward(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], Pullback]:
        import cupy

        for name, x in feeds.items():
            if name not in self._stay:
                overwrite(self._feeds[name], x)
        self._forward.launch(cupy.cuda.get_current_stream())
        self.step += 1
        updates = {name: y.copy() for name, y in self._updates.items()}
        return {name: y.copy() for name, y in self._outputs.items()}, _Replayed(self, self.step, updates)

    def backward(self, grads: Mapping[str, Any]) -> Gradients:
        import cupy

        if not self._grads.keys() >= grads.keys():  # another loss: this step once more, launch by launch
            return self._tape.forward(self._feeds)[1](grads)
        for name, there in self._grads.items():
            if name in grads:
                overwrite(there, grads[name])
            else:
                there.fill(0)
        self._backward.launch(cupy.cuda.get_current_stream())
        return {name: g.copy() for name, g in self._found.items()}


class _Replayed(Pullback):
    """The pass backward of one step."""

    def __init__(self, recording: _Recording, step: int, updates: dict[str, Any]) -> None:
        self._recording, self._step, self.updates = recording, step, updates

    def __call__(self, grads: Mapping[str, Any]) -> Gradients:
        if self._recording.step != self._step:
            raise PumiceError("the next step of this tape has begun: a pass backward comes before the next one forward")
        return self._recording.backward(grads)


def _copied(x: Any) -> Any:
    return x.copy() if on_device(x) else to_device(x)


def _free_bytes() -> int:
    """What more arrays may take."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    free, limit = int(cupy.cuda.runtime.memGetInfo()[0]), int(pool.get_limit())
    return min(free, limit - int(pool.used_bytes())) if limit else free
