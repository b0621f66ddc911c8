"""A plan on the GPU: which constants lie there, and what computes its steps.

    plan = compile_plan(model, placement=OnDevice())
    plan.run({"x": cupy.asarray(x)})                 # CuPy arrays in, CuPy arrays out

Arrays decide where a step runs. One that reads an array of the GPU runs there: the arrays that it reads beside it are
brought over, but for those that say *how* rather than *what* (a shape, axes, pads: `HOST_INPUTS`), which a launch needs
on the CPU. One that reads none (arithmetic on shapes) runs on the CPU in NumPy. So data stay on the GPU and shapes on
the CPU, and neither waits for the other.

What is brought over is remembered by its place in the plan, for each thread: a mask or an index that is the same in
every run is copied once. What a kernel refuses is computed by core's code on CuPy's arrays. A step that CuPy cannot
compute either (a type it lacks, a function it does not have) runs on the CPU in NumPy, with one line in the log, its
inputs and outputs copied: slow, never wrong. Arrays of another GPU are refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.errors import DataError
from pumice.ops.gradient import SUMS
from pumice.ops.matmul import MULTIPLIERS
from pumice.ops.record import Array, Forward, Node, Op, Outputs, Vjp
from pumice.ops.updates import FUSED
from pumice_cuda import blas, device, rows, updates
from pumice_cuda.transfers import RecordedCopy, finish_stream, is_movable, on_device, to_device, to_host

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.autograd import Tape

HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,),
    "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Upsample": (1,), "ConstantOfShape": (0,),
    "Range": (0, 1, 2), "OneHot": (1,), "TopK": (1,), "CumSum": (1,), "Trilu": (1,), "Dropout": (1, 2),
    "Clip": (1, 2), "If": (0,), "Loop": (0, 1), "DFT": (1, 2), "STFT": (1, 3), "MaxUnpool": (2,),
    "AffineGrid": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "SplitToSequence": (1,), "SequenceAt": (1,),
    "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceL1": (1,),
    "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceSumSquare": (1,), "BitShift": (),
}  # fmt: skip
"""Inputs that say how, by operator."""
SMALL = 1024
"""64-bit integers up to this many are shapes or indices and stay on the CPU, whence they are copied once if needed; so
do 32-bit integers that shapes are made of."""
ARITHMETIC_ON_SHAPES = frozenset({
    "Add", "Cast", "Concat", "Div", "Equal", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "ReduceProd",
    "Reshape", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze", "Where",
})  # fmt: skip
REMEMBERED = 1 << 22
"""Bytes of an array up to which it is compared with the last one in its place before it is copied."""
UNSUPPORTED = (TypeError, AttributeError, NotImplementedError, ValueError, IndexError)
"""What CuPy raises where it cannot do what NumPy can."""
_log = logging.getLogger("pumice.cuda")
_thread = threading.local()


@contextmanager
def reading() -> Iterator[list[Any]]:
    """What this thread's steps read meanwhile that was brought over in earlier runs.

    A plan forgets it as soon as another array comes in its place; a recording, which reads it again, must keep it.
    """
    found: list[Any] = []
    _thread.read = found
    try:
        yield found
    finally:
        del _thread.read


def _claim() -> None:
    """Have core's code multiply, sum and update CuPy's arrays as is best here.

    Raises:
        PumiceError: there is no GPU to use; the text says why.
    """
    device.gpu()
    MULTIPLIERS["cupy"] = blas.matmul
    SUMS["cupy"] = rows.total
    FUSED["cupy"] = updates.adaptive


class OnDevice:
    """The placement of a plan on the current GPU.

    Raises:
        PumiceError: there is no GPU to use; the text says why.
    """

    device = "cuda"

    def __init__(self, *, records: bool = True) -> None:
        """
        Args:
            records: whether steps of a training are recorded and replayed.
        """
        _claim()
        self._records = records
        self.fallen: dict[str, str] = {}
        """Operators that ran on the CPU, and why."""
        self._once = False

    @contextmanager
    def once(self) -> Iterator[None]:
        """Nobody is told what runs on the CPU meanwhile: it is computed this one time."""
        self._once = True
        try:
            yield
        finally:
            self._once = False

    def constant(self, value: ir.Value, array: Array) -> Any:
        """On the GPU unless it is a number (a NumPy scalar then), a shape or indices, or read by the CPU alone."""
        if not is_movable(array):
            return array
        if array.ndim == 0:
            return array[()]
        if array.size <= SMALL and (array.dtype == np.int64 or (array.dtype == np.int32 and _makes_a_shape(value))):
            return array
        if any(use.idx in HOST_INPUTS.get(use.node.op_type, ()) for use in value.uses()):
            return array
        return to_device(array)

    def step(self, op: Op, call: Forward, vjp: Callable[..., Any] | None) -> tuple[Op, Forward, Any]:
        assert op.forward is not None
        host = HOST_INPUTS.get(op.op_type, ()) if not op.domain else ()
        forward = Placed(op.forward, op.forward, host, self)
        placed = Placed(op.forward, call, host, self)
        gradient = None if vjp is None else _placed_gradient(op, vjp, host, self)
        return attrs.evolve(op, forward=forward), placed, gradient

    def tape(self, tape: Tape) -> Tape:
        from pumice_cuda.training import RecordedTape

        return RecordedTape(tape) if self._records else tape

    def bring(self, array: Any) -> Any:
        return to_device(array)

    def fetch(self, array: Any) -> Any:
        return to_host(array)

    def note(self, what: str, error: Exception, node: Node) -> None:
        """One line for every operator that the GPU cannot compute."""
        if what not in self.fallen and not self._once:
            reason = str(error).partition("\n")[0]
            self.fallen[what] = reason
            _log.warning("%s runs on the CPU: CuPy says '%s' (%s)", what, reason, node)

    def available_bytes(self) -> int:
        import cupy

        return int(cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes())


class Placed:
    """Computes one node where its arrays are."""

    def __init__(self, reference: Forward, call: Forward, host: tuple[int, ...], plan: OnDevice) -> None:
        self._calls = (call,) if call is reference else (call, reference)
        self._reference, self._plan = reference, plan
        self._bring = Brought(host)
        self._falls = False

    def __call__(self, node: Node, *arrays: Any) -> Outputs:
        if not any(map(_anywhere_on_device, arrays)):
            return self._reference(node, *arrays)
        if not self._falls:
            for call in self._calls:
                try:
                    return call(node, *self._bring(arrays))
                except UNSUPPORTED as error:
                    refusal = error
                    _log.debug("%s is refused: '%s'", node, error)
            try:
                results = self._on_host(node, arrays)  # if it fails there too, that is the model's fault
            except RecordedCopy as stop:
                raise RecordedCopy(f"{node} would run on the CPU, since CuPy says '{refusal}'") from stop
            self._falls = True
            self._plan.note(node.op_type, refusal, node)
            return results
        return self._on_host(node, arrays)

    def _on_host(self, node: Node, arrays: Sequence[Any]) -> Outputs:
        results = self._reference(node, *map(to_host, arrays))
        return tuple(_returned(y) for y in results)


class Brought:
    """Brings the arrays of one node together on the GPU, those at the host's places to the CPU."""

    def __init__(self, host: tuple[int, ...] = ()) -> None:
        self._host = host
        self._thread = threading.local()  # memory is used again in the order of its thread's stream

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        return [to_host(x) if i in self._host else self._there(i, x) for i, x in enumerate(arrays)]

    def _there(self, place: int, x: Any) -> Any:
        if on_device(x):
            refuse_other_device(x)
            return x
        if not is_movable(x):
            return x
        if x.ndim == 0:
            return x[()]
        remembered: dict[int, tuple[Array, Any]] = vars(self._thread).setdefault("remembered", {})
        if place in remembered and _same(remembered[place][0], x):
            moved = remembered[place][1]
            vars(_thread).get("read", []).append(moved)
            return moved
        moved = to_device(x)
        if x.nbytes <= REMEMBERED:
            finish_stream()  # a recording may read it on another stream
            remembered[place] = x.copy(), moved
        return moved


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _placed_gradient(op: Op, vjp: Callable[..., Any], host: tuple[int, ...], plan: OnDevice) -> Any:
    """The gradient where its arrays are; it reads what the operator's own does."""
    reference = op.vjp
    calls = [vjp] if reference is None or reference is vjp else [vjp, reference]
    bring, gradients = Brought(host), Brought()
    fallen: list[bool] = []

    def run(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Sequence[Any]:
        assert reference is not None
        if not any(map(_anywhere_on_device, (*inputs, *outputs, *grads))):
            return list(reference(node, inputs, outputs, grads, wanted))
        for call in [] if fallen else calls:
            try:
                there = gradients([*outputs, *grads])
                return list(call(node, bring(inputs), there[: len(outputs)], there[len(outputs) :], wanted))
            except UNSUPPORTED as error:
                refusal = error
                _log.debug("the gradient of %s is refused: '%s'", node, error)
        found = reference(node, to_host(inputs), to_host(outputs), to_host(grads), wanted)
        if not fallen:
            fallen.append(True)
            plan.note(f"the gradient of {node.op_type}", refusal, node)
        return [_returned(g) for g in found]

    return attrs.evolve(vjp, run=run) if isinstance(vjp, Vjp) else run


def _makes_a_shape(value: ir.Value) -> bool:
    """Whether anything that the CPU reads is computed from it, by operators that shapes are computed with."""
    seen, left = set[int](), [value]
    while left:
        for use in left.pop().uses():
            if use.idx in HOST_INPUTS.get(use.node.op_type, ()):
                return True
            if use.node.op_type in ARITHMETIC_ON_SHAPES and id(use.node) not in seen:
                seen.add(id(use.node))
                left.extend(use.node.outputs)
    return False


def _anywhere_on_device(x: Any) -> bool:
    return any(map(_anywhere_on_device, x)) if isinstance(x, list) else on_device(x)


def _returned(y: Any) -> Any:
    """A result of the CPU, back on the GPU if it is of a type known there and no number."""
    if isinstance(y, list):
        return [_returned(item) for item in y]
    return to_device(np.asarray(y)) if isinstance(y, np.ndarray | np.generic) else y


def refuse_other_device(x: Any) -> None:
    """Raises DataError if an array lies on another GPU than the current one."""
    import cupy

    here = cupy.cuda.runtime.getDevice()
    if x.device.id != here:
        raise DataError(
            f"an array lies on GPU {x.device.id} and the plan runs on GPU {here}: copy it there with cupy.asarray, "
            f"inside `with cupy.cuda.Device({here})`"
        )
