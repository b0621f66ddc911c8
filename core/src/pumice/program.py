"""A program: steps over numbered slots, and how they are run.

Each step is a callable, the slots it reads and writes, and the slots that die with it (their last use), which are
freed at once, so that peak memory is what is alive and no more. Slot 0 always holds None and stands for absent optional
inputs. Slots of constants are filled in advance. Subgraphs (If, Loop, Scan) are programs of their own: values of an
outer scope that they read are captured, passed by slot like inputs of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import DataError, ModelError, PumiceError
from pumice.ops.record import Array, Forward, Node, Op

Tap = Callable[[str, Array], None]
"""Called with the name and value of every value computed, in order; must not change the array."""

ABSENT = 0


@attrs.frozen(eq=False)
class Step:
    """One node, ready to run."""

    node: Node
    op: Op
    call: Forward
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    """Slot of each output; `ABSENT` for one that the node leaves out."""
    captures: tuple[int, ...] = ()
    """Slots of the outer values that the node's subgraphs read, subgraph by subgraph."""
    frees: tuple[int, ...] = ()
    vjp: Callable[..., Any] | None = None
    """The gradient, with the kernels that compute it; None if none is known."""


@attrs.frozen(eq=False)
class Program:
    """The steps of one graph over one set of slots."""

    steps: tuple[Step, ...]
    names: tuple[str, ...]
    """Name of the value in each slot."""
    template: tuple[Any, ...]
    """What each slot holds before a run: constants, else None."""
    inputs: tuple[int, ...]
    captured: tuple[int, ...]
    """Slots to be filled from the outer scope, in the order of the parent step's `captures`."""
    outputs: tuple[int, ...]
    fused: tuple[Step, ...]
    """The same in fewer steps: what runs if no value between is asked for."""

    def run(self, filled: Iterable[tuple[int, Any]], tap: Tap | None = None) -> list[Any]:
        slots = list(self.template)
        for slot, value in filled:
            slots[slot] = value
        for step in self.fused if tap is None else self.steps:
            for slot, value in zip(step.outputs, compute(step, slots, tap), strict=False):
                if slot != ABSENT:
                    slots[slot] = value
                    if tap is not None and isinstance(value, np.ndarray):
                        tap(self.names[slot], value)
            for slot in step.frees:
                slots[slot] = None
        return [slots[i] for i in self.outputs]


def compute(step: Step, slots: Sequence[Any], tap: Tap | None = None) -> list[Any]:
    """All that a step returns for the values in the slots, scalars as arrays.

    Raises:
        ModelError: it cannot be computed on what it was given.
    """
    node = _bind(step, slots, tap) if step.captures or step.node.attributes.get(HAS_GRAPHS) else step.node
    arrays = [slots[i] for i in step.inputs]
    try:
        results = step.call(node, *arrays)
    except PumiceError:
        raise
    except (ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise _failure(step, arrays, error) from error
    return [
        value if value is None or isinstance(value, list) or is_array(value) else np.asarray(value) for value in results
    ]


def is_array(value: Any) -> bool:
    """NumPy's, or one of a device that follows its protocols."""
    return isinstance(value, np.ndarray) or hasattr(value, "__array_function__")


@attrs.frozen(eq=False)
class Subgraph:
    """A graph attribute: bound to the values it captures, it runs like a function of its inputs."""

    program: Program
    results: tuple[Input, ...]
    """What the graph declares about its outputs."""
    captured: tuple[Any, ...] = ()
    tap: Tap | None = None

    def run(self, *inputs: Any) -> list[Any]:
        """Outputs of the graph for positional inputs."""
        program = self.program
        pairs = [*zip(program.captured, self.captured, strict=True), *zip(program.inputs, inputs, strict=False)]
        return program.run(pairs, self.tap)


HAS_GRAPHS = "pumice.graphs"
"""Key among a node's attributes: names of its graph attributes in the order of the step's captures."""


def _bind(step: Step, slots: Sequence[Any], tap: Tap | None) -> Node:
    attributes, at = dict(step.node.attributes), 0
    for key in attributes[HAS_GRAPHS]:
        count = len(attributes[key].program.captured)
        captured = tuple(slots[i] for i in step.captures[at : at + count])
        attributes[key] = attrs.evolve(attributes[key], captured=captured, tap=tap)
        at += count
    return attrs.evolve(step.node, attributes=attributes)


def _failure(step: Step, arrays: Sequence[Any], error: Exception) -> ModelError:
    shapes = ", ".join(map(_describe, arrays))
    return ModelError(
        f"{step.node} cannot be computed on inputs ({shapes}): {error}; check the shapes fed to the model"
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "absent" if value is None else f"a sequence of {len(value)}"


def with_lifetimes(steps: Sequence[Step], keep: set[int]) -> list[Step]:
    """Steps that free each computed value, and each input, after its last use."""
    done, result = {ABSENT, *keep}, []
    for step in reversed(steps):
        touched = dict.fromkeys((*step.inputs, *step.captures, *step.outputs))
        result.append(attrs.evolve(step, frees=tuple(s for s in touched if s not in done)))
        done.update(touched)
    return result[::-1]


@attrs.frozen(kw_only=True)
class Input:
    """What the model says about one of its inputs."""

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | str | None, ...] | None = None
    """Numbers are fixed; names and None may be any size. None as a whole: any rank."""
    required: bool = True
    """False where an initializer of the same name is the default."""
    tensor: bool = True
    """False for sequences (lists of arrays) and optional values, which are passed on as they are."""

    def check(self, value: Any) -> None:
        """Raises DataError if the array cannot be this input."""
        if not self.tensor:
            return
        if not is_array(value):
            raise DataError(f"input '{self.name}' must be a NumPy array, not {type(value).__name__}")
        if (
            self.dtype is not None
            and value.dtype != self.dtype
            and not (self.dtype.kind == "O" and value.dtype.kind in "USTO")
        ):
            raise DataError(
                f"input '{self.name}' must have type {self.dtype} but the data has {value.dtype}; "
                f"convert the data with .astype('{self.dtype}')"
            )
        if self.shape is None:
            return
        fits = len(self.shape) == value.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            want = ", ".join("?" if d is None else str(d) for d in self.shape)
            raise DataError(f"input '{self.name}' must have shape [{want}] but the data has {list(value.shape)}")
