"""Where values lie: strided views of pieces of memory, described by NumPy arrays that are never read or written.

Every value of the graph is a view: a shape, strides and a first byte within a *root*. Transposing, slicing, splitting
or reshaping without a copy is then what NumPy makes of the description, and costs nothing at run time. Images with
channels last are no special case: they have the shape (N, C, H, W) that ONNX gives them, and strides in which C is
the fastest axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np

from pumice.ops.record import Array

Home = Literal["arena", "constant", "outside"]


@attrs.define(eq=False)
class Root:
    """Memory of its own: planned in the arena, a constant, or given from outside at every run (inputs, outputs and what
    the reference kernels computed).
    """

    memory: Array = attrs.field(repr=False)
    """Bytes; a description only, except for a constant."""
    home: Home = "arena"

    @property
    def nbytes(self) -> int:
        return int(self.memory.nbytes)


@attrs.frozen(eq=False)
class View:
    """Part of a root."""

    root: Root
    array: Array = attrs.field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def offset(self) -> int:
        """Bytes from the root's first to the view's first."""
        return address(self.array) - address(self.root.memory)

    @property
    def steps(self) -> list[int]:
        """Strides in elements."""
        return [s // self.array.itemsize for s in self.array.strides]

    @property
    def is_plain(self) -> bool:
        """In C order without gaps."""
        return bool(self.array.flags.c_contiguous)

    @property
    def is_channels_last(self) -> bool:
        return self.lies_in(channels_last(self.array.ndim))

    def lies_in(self, order: Sequence[int]) -> bool:
        """Whether the view has no gaps with its axes in this order, from the slowest to the fastest."""
        return bool(self.array.transpose(order).flags.c_contiguous)

    @property
    def order(self) -> tuple[int, ...] | None:
        """An order that the view lies in, C order if possible; None if it has gaps. Axes of length 1 fit anywhere."""
        axes = tuple(range(self.array.ndim))
        by_stride = tuple(sorted(axes, key=lambda a: (-self.array.strides[a], a)))
        return next((o for o in (axes, channels_last(len(axes)), by_stride) if self.lies_in(o)), None)


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def channels_last(rank: int) -> tuple[int, ...]:
    """The order of (N, C, ...) in which C is the fastest axis."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def fresh(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None, home: Home = "arena") -> View:
    """A view of a new root without gaps, its axes from the slowest to the fastest as `order` says."""
    dtype, axes = np.dtype(dtype), tuple(range(len(shape))) if order is None else tuple(order)
    root = Root(np.empty(math.prod(shape) * dtype.itemsize, np.uint8), home)
    array = np.ndarray([shape[a] for a in axes], dtype, root.memory)
    return View(root, array.transpose(np.argsort(axes)) if axes else array)


def constant(array: Array) -> View:
    """A constant in C order."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    return View(Root(array.reshape(-1).view(np.uint8), "constant"), array)


def within(root: Root, array: Array) -> bool:
    """Whether an array lies in a root's memory: it was made by viewing, not by copying."""
    begin, end = address(root.memory), address(root.memory) + root.nbytes
    return array.size > 0 and begin <= address(array) < end
