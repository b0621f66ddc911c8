"""An open model on a GPU; any number of threads may run it at once.

A quantized model runs on the integers of ONNX Runtime: Q and DQ become integer operators as it fuses them
(`pumice.quantize.fusion`), whose sums are exact on the GPU too. What depends on constants alone is computed once, when
the model is opened.

A shape that comes for the first time runs operator by operator, one such run after the other: kernels lay out weights
as they first need them, and no stream waits for another's. When it comes again its run is recorded (`replay`), and from
then on a run is one copy in for every input, one launch, and one copy out for every output. A model that cannot be
recorded (its shapes depend on its values, a step runs on the CPU) goes on operator by operator, and `description` says
so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pumice.errors import DataError, PumiceError
from pumice.ops.record import Array
from pumice.plan import Plan, compile_plan
from pumice.program import Step
from pumice_cuda import device
from pumice_cuda.placing import OnDevice, refuse_other_device
from pumice_cuda.runtime.folding import fold_constants, folded
from pumice_cuda.runtime.replay import CannotRecord, Replay, finish
from pumice_cuda.transfers import handed_out, on_device, to_device

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_SHAPES = 16
"""Shapes whose recordings are kept, the last ones used."""
_thread = threading.local()
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


class CudaSession:
    """A model ready to run on the GPU that was current when it was opened.

    Args:
        model: left unchanged.
        outputs: values to return, any of the main graph; None means the graph's outputs.
        graphs: whether runs are recorded.
        streams: runs of one shape that go on at once.
    """

    def __init__(
        self, model: ir.Model, *, outputs: Sequence[str] | None = None, graphs: bool = True, streams: int = 4
    ) -> None:
        device.gpu()  # says why, where there is none
        self._placement = OnDevice()
        with _memory_to("open the model"), self._placement.once():
            plan = compile_plan(_integers(model, outputs), outputs, placement=self._placement)
            self.plan = folded(plan)
        self._bounds = _index_bounds(self.plan, plan.program.steps)
        self._graphs, self._streams = graphs, streams
        self._seen: OrderedDict[Shapes, _Recordings] = OrderedDict()
        self._lock, self._first_runs = threading.Lock(), threading.Lock()
        self._refusal = ""
        finish()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs, by name, as NumPy arrays.

        Args:
            feeds: inputs, in NumPy or on the GPU.

        Raises:
            DataError: an input does not fit, lies on another GPU, or is an index beyond the axis of a constant that it
                selects from.
            ModelError: a node cannot be computed on what it was given.
            PumiceError: the memory of the GPU does not suffice.
        """
        self.plan.filled(feeds)
        if there := [x for x in feeds.values() if on_device(x)]:
            for x in there:
                refuse_other_device(x)
            finish()  # they may still be computed, on any stream
        self._refuse_indices_outside(feeds)
        shapes = _shapes(feeds)
        recordings = self._recordings(shapes)
        if recordings is None:
            with self._first_runs:
                results = self._run_step_by_step(feeds)
            self._remember(shapes)
            return results
        if self._graphs and feeds.keys() == {i.name for i in self.plan.inputs}:
            try:
                with recordings.one(self.plan, feeds) as replay:
                    return replay.run(feeds)
            except CannotRecord as refusal:
                self._give_up(str(refusal))
        return self._run_step_by_step(feeds)

    def _refuse_indices_outside(self, feeds: Mapping[str, Array]) -> None:
        """On the GPU they would come round again at the other end; there is no error in a kernel."""
        for name, size in self._bounds.items():
            x = feeds.get(name)
            if x is None or not getattr(x, "size", 0):
                continue
            least, most = int(x.min()), int(x.max())
            if least < -size or most >= size:
                wrong = least if least < -size else most
                raise DataError(
                    f"input '{name}' has index {wrong} and selects from {size} entries: give indices from {-size} "
                    f"to {size - 1}"
                )

    @property
    def description(self) -> str:
        how = "replayed as CUDA graphs" if self._graphs else "operator by operator"
        why = f" ({self._refusal})" if self._refusal else ""
        fallen = ", ".join(sorted(self._placement.fallen))
        return f"pumice cuda: {device.examination()}, {how}{why}" + (f"; on the CPU: {fallen}" if fallen else "")

    def _recordings(self, shapes: Shapes) -> _Recordings | None:
        """Those of feeds of some shapes; None before their first run has ended."""
        with self._lock:
            found = self._seen.get(shapes)
            if found is not None:
                self._seen.move_to_end(shapes)
            return found

    def _remember(self, shapes: Shapes) -> None:
        with self._lock:
            self._seen.setdefault(shapes, _Recordings(self._streams))
            while len(self._seen) > MOST_SHAPES:
                self._seen.popitem(last=False)

    def _give_up(self, refusal: str) -> None:
        """Record no more, and leave the memory of what was recorded to others."""
        with self._lock:
            self._graphs, self._refusal = False, refusal
            self._seen.clear()

    def _run_step_by_step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = ", ".join(f"{name} {list(shape)}" for name, shape, _ in _shapes(feeds))
        with _memory_to(f"run it on {given}"), _own_stream() as stream:
            results = self.plan.run({name: to_device(x) for name, x in feeds.items()})
            found = {name: handed_out(y) for name, y in results.items()}
            stream.synchronize()  # outputs of the CPU wait for nothing
            return found


class _Recordings:
    """Those of one shape: as many as runs go on at once, up to a limit."""

    def __init__(self, most: int) -> None:
        self._free: list[Replay] = []
        self._unmade = most
        self._changed = threading.Condition()

    @contextmanager
    def one(self, plan: Plan, feeds: Mapping[str, Array]) -> Iterator[Replay]:
        """A recording for one run, made if all are in use and there may be more of them; else the next that is free.

        Raises:
            CannotRecord: the plan is more than launches.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._unmade)
            lent = self._free.pop() if self._free else None
            self._unmade -= lent is None
        try:
            lent = lent or Replay(plan, feeds)
            yield lent
        finally:
            with self._changed:
                if lent is None:  # it could not be made
                    self._unmade += 1
                else:
                    self._free.append(lent)
                self._changed.notify()


@contextmanager
def _memory_to(do_what: str) -> Iterator[None]:
    """Raises PumiceError where there is not enough of it."""
    try:
        yield
    except MemoryError as error:
        raise PumiceError(
            f"the memory of the GPU does not suffice to {do_what} ({error}): give less at once, or close other sessions"
        ) from error


def _integers(model: ir.Model, outputs: Sequence[str] | None) -> ir.Model:
    """The model with integer operators for Q and DQ, few and large; values that are asked for are not fused away."""
    from pumice.model import clone
    from pumice.quantize.fusion import fused
    from pumice_cuda.runtime.few_bits import multiply_in_blocks
    from pumice_cuda.runtime.merging import merge_products

    model = clone(model)
    if outputs is not None:
        wanted = set(outputs) - {str(value.name) for value in model.graph.outputs}
        model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in wanted)
    multiply_in_blocks(model)
    fold_constants(model)
    result = fused(model)
    merge_products(result)
    return result


def _index_bounds(plan: Plan, steps: Sequence[Step]) -> dict[str, int]:
    """Inputs that select from a constant, and how many entries it has; the fewest of several.

    `steps` are a node each, in the plan's slots.
    """
    program, inputs = plan.program, {i.name for i in plan.inputs}
    found: dict[str, int] = {}
    for step in steps:
        if step.node.op_type != "Gather" or step.node.domain:
            continue
        data, name = program.template[step.inputs[0]], program.names[step.inputs[1]]
        if data is not None and name in inputs and program.template[step.inputs[1]] is None:
            size = int(data.shape[step.node.get("axis", 0)])
            found[name] = min(size, found.get(name, size))
    return found


def _shapes(feeds: Mapping[str, Any]) -> Shapes:
    """Sequences, which are no arrays, have none."""
    arrays = ((name, x) for name, x in sorted(feeds.items()) if hasattr(x, "shape"))
    return tuple((name, x.shape, x.dtype.str) for name, x in arrays)


def _own_stream() -> Any:
    """The thread's own, and always the same one: freed memory is kept for the stream that it was used on."""
    import cupy

    if not hasattr(_thread, "stream"):
        _thread.stream = cupy.cuda.Stream(non_blocking=True)
    return _thread.stream
