"""Arrays between the CPU and the GPU, counted.

What a plan, a session and a training move goes through `to_device`, `overwrite` and `to_host`; `counting()` says how
many arrays went and how many bytes:

    with counting() as moved:
        session.run(feeds)
    moved.into, moved.out, moved.bytes_into, moved.bytes_out

What is made once beside them (tables, scales, weights laid out anew) goes to CuPy directly and is not counted, nor is
what CuPy copies itself; tests on a GPU count those too, inside a training step.

An array of a type that the GPU does not know (strings, 4-bit integers, 8-bit floats) stays; `is_movable` says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np

MOVABLE = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128",
})  # fmt: skip
"""Types, by NumPy's names."""
_lock = threading.Lock()
_counters: list[Transfers] = []


class RecordedCopy(RuntimeError):
    """Something was to be copied between the CPU and the GPU while a stream was being recorded; the text says what."""


@attrs.define
class Transfers:
    """Arrays moved, of all threads."""

    into: int = 0
    """The GPU."""
    out: int = 0
    bytes_into: int = 0
    bytes_out: int = 0


@contextmanager
def counting() -> Iterator[Transfers]:
    """Counts what is moved while it is open, by any thread."""
    moved = Transfers()
    with _lock:
        _counters.append(moved)
    try:
        yield moved
    finally:
        with _lock:
            _counters[:] = [counter for counter in _counters if counter is not moved]


def on_device(x: Any) -> bool:
    """Whether `x` is an array in the memory of a GPU."""
    return hasattr(x, "__cuda_array_interface__")


def is_movable(x: Any) -> bool:
    """Whether `x` is an array of a type that a GPU computes with."""
    return isinstance(x, np.ndarray) and x.dtype.name in MOVABLE


def to_device(x: Any) -> Any:
    """A NumPy array as a CuPy array on the current GPU; what cannot or need not move, as it is."""
    if not is_movable(x):
        return x
    import cupy

    _count_into(x.nbytes)
    return cupy.asarray(x)


def overwrite(there: Any, x: Any) -> None:
    """Copy an array of either kind over one of the GPU of the same shape and type."""
    if on_device(x):
        there[...] = x
        return
    _count_into(x.nbytes)
    there.set(x)


def finish_stream() -> None:
    """Wait until everything on the current stream is done, so that any stream may read it."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def _count_into(size: int) -> None:
    _refuse_in_recording()
    with _lock:
        for counter in _counters:
            counter.into += 1
            counter.bytes_into += size


def _refuse_in_recording() -> None:
    """A recorded copy would read or write the CPU's memory again in every replay, long after it was freed.

    Raises:
        RecordedCopy: the current stream is being recorded.
    """
    import cupy

    if cupy.cuda.get_current_stream().is_capturing():
        raise RecordedCopy("arrays are copied between the CPU and the GPU in the middle of the model")


def to_host(x: Any) -> Any:
    """A CuPy array as a NumPy array, once the GPU has computed it; lists item by item; anything else as it is."""
    if isinstance(x, list | tuple):
        return [to_host(item) for item in x]
    if not on_device(x):
        return x
    import cupy

    _refuse_in_recording()
    with _lock:
        for counter in _counters:
            counter.out += 1
            counter.bytes_out += x.nbytes
    return cupy.asnumpy(x)


def handed_out(y: Any) -> Any:
    """A result as the caller's own NumPy array: what lies on the CPU may be a constant of the model, or an input."""
    if isinstance(y, list | tuple):
        return [handed_out(item) for item in y]
    return to_host(y) if on_device(y) else np.array(y)
