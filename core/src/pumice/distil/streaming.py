"""A teacher larger than memory: run layer by layer, from weights that are mapped, not held.

A model whose weights lie in a file beside it has them mapped: they come into memory, page by page, when a step reads
them. After the last step that reads a weight its pages are given back at once, so that memory holds the weights of one
layer and the values that are alive, instead of pressing everything else out until the system takes pages back. Reading
costs the same for one sample as for a thousand: larger batches are read for less often. Kernels that arrange weights in
advance would hold copies of them all, and are left out.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.plan import Plan, compile_plan
from pumice.program import ABSENT, compute
from pumice.registry import registry

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]


@attrs.frozen(eq=False)
class Streamed:
    """A model whose weights stay in their files. May be run by several threads at once."""

    plan: Plan
    last: Mapping[int, tuple[Array, ...]]
    """By step, the mapped weights that no later step reads."""

    @classmethod
    def of(cls, model: ir.Model, outputs: Sequence[str] | None = None) -> Streamed:
        """
        Args:
            model: left unchanged; loaded from a file, with its weights in files beside it.
            outputs: values to return, any of the main graph; None: its outputs.
        """
        kernels = [kernel for kernel in registry().kernels if kernel.bind is None]
        plan = compile_plan(model, outputs, ops=registry().ops, kernels=kernels)
        final = {slot: number for number, step in enumerate(plan.steps) for slot in step.inputs}
        last: dict[int, list[Array]] = {}
        for slot in plan.initializers.values():
            weight = plan.program.template[slot]
            if slot in final and file_of(weight) is not None:
                last.setdefault(final[slot], []).append(weight)
        return cls(plan, {number: tuple(weights) for number, weights in last.items()})

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name.

        Raises:
            DataError, ModelError: as `Plan.run`.
        """
        slots = list(self.plan.program.template)
        for slot, value in self.plan.filled(feeds):
            slots[slot] = value
        with np.errstate(all="ignore"):
            for number, step in enumerate(self.plan.steps):
                for slot, value in zip(step.outputs, compute(step, slots), strict=False):
                    if slot != ABSENT:
                        slots[slot] = value
                for slot in step.frees:
                    slots[slot] = None
                for weight in self.last.get(number, ()):
                    give_back(weight)
        return dict(zip(self.plan.output_names, (slots[i] for i in self.plan.program.outputs), strict=True))


def file_of(array: Array) -> mmap.mmap | None:
    """The mapped file that an array looks into, if it does."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def give_back(array: Array) -> None:
    """Let the system have the whole pages of a mapped array; they are read again if they are needed again."""
    mapped = file_of(array)
    if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = array.ctypes.data - np.frombuffer(mapped, np.uint8, 1).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        mapped.madvise(mmap.MADV_DONTNEED, first, length)
