"""What is made of a node's constants, once, when a plan is compiled or when it is first needed (`Once`): weights as the
kernels read them.

A record whose weights are constant is bound: `bound(positions, prepare)` gives the constants at some positions of the
inputs to `prepare`, which returns what computes the node from then on, or None where it has no kernel for them. A feed
may replace a constant; such a run is core's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import attrs
import numpy as np

from pumice.ops.record import Forward, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.transfers import finish_stream, to_device, to_host

Prepare = Callable[[Node, Sequence[Any]], Forward | None]
T = TypeVar("T")


def bound(positions: Sequence[int], prepare: Prepare) -> Callable[[Node, Sequence[Any]], Forward | None]:
    """A record's `bind`; absent inputs are None."""

    def chosen(inputs: Sequence[Any]) -> list[Any]:
        return [inputs[i] if i < len(inputs) else None for i in positions]

    def bind(node: Node, constants: Sequence[Any]) -> Forward | None:
        known = chosen(constants)
        call = prepare(node, known)
        if call is None:
            return None

        def run(node: Node, *arrays: Any) -> Outputs:
            same = all(given is constant for given, constant in zip(chosen(arrays), known, strict=True))
            return call(node, *arrays) if same else reference.forward(node, *arrays)

        return run

    return bind


class Once(Generic[T]):
    """What `make` makes on the GPU when it is first needed: by one thread, and finished before any stream reads it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                made = self._make()
                finish_stream()
                self._made.append(made)
        return self._made[0]


@attrs.frozen(eq=False)
class Levels:
    """Weights less their zero points, as int8."""

    values: Any
    """(outputs, ...)."""
    sums: Any
    """(outputs,) of int32, over everything else."""

    @classmethod
    def of(cls, weights: Any, zero: Any) -> Levels | None:
        """None if a level is not an int8.

        Args:
            weights: (outputs, ...) of int8 or uint8.
            zero: None, one for all or one for each output.
        """
        import cupy

        wide = to_device(weights).astype(np.int16)
        if zero is not None:
            points = cupy.asarray(to_host(zero), np.int16)
            wide -= points.reshape(()) if points.size == 1 else points.reshape(-1, *(1,) * (wide.ndim - 1))
        if not wide.size or int(wide.min()) < -128 or int(wide.max()) > 127:
            return None
        values = cupy.ascontiguousarray(wide.astype(np.int8))
        return cls(values, wide.reshape(len(wide), -1).sum(axis=1, dtype=np.int32))

    def offset(self, zero: Any, bias: Any = None) -> Any:
        """What the sums lack for inputs with a zero point (a number, or one on the GPU): (outputs,) of int32."""
        shift = 0 if zero is None else zero.astype(np.int32) if hasattr(zero, "astype") else np.int32(zero)
        offset = self.sums * -shift
        return offset if bias is None else offset + bias


def number(constant: Any) -> int:
    """The value of a constant with one element; 0 where there is none."""
    return 0 if constant is None else int(np.asarray(to_host(constant)).reshape(()))


def vector(constant: Any) -> Any:
    """A constant as float32 on the GPU, with one axis."""
    import cupy

    return cupy.asarray(np.asarray(to_host(constant), np.float32).reshape(-1))


def is_single(*constants: Any) -> bool:
    """Whether each has one element or is absent."""
    return all(c is None or c.size == 1 for c in constants)
