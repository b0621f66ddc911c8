"""How channels pass through an operator: ties between the axes of its inputs and outputs.

A `Port` is an axis of an input or an output. A rule says for a node, from its attributes, shapes and constants, which
ports lose channels together:

    Same       position a[i] of one port is the channel at position b[i] of another: equal axes, offsets (Concat),
               slices, strides and repetitions (Flatten: each channel fills H * W positions) are all index maps
    Regroup    ports whose axes are runs of the same list of factors (Reshape): heads * size <-> heads, size
    Balanced   the axis is cut into equal cells, each of which must lose equally many (grouped convolution)
    Summed     the axis is read by a sum, so that a channel that is zero there is as good as removed
    Restricted the node computes statistics over the axis; without a channel it computes them over the others
    Free       the axis may have any size
    Blocked    the axis must stay as it is, for a reason

An axis that a rule does not mention is blocked. Where a removal changes what the node says about itself (a group count,
a target shape), `edit` gives the change from what is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.ops.record import Array, Node

Dims = tuple[int | str | None, ...]
"""Sizes of a value; a name or None where a size is dynamic."""
Index = NDArray[np.int64]


@attrs.frozen
class Cellwise:
    """The axis `axis` of filters (M, C / cells, ...) seen cell by cell along axis 0: cells * size positions."""

    axis: int
    cells: int


@attrs.frozen
class Port:
    """An axis of input `slot`, or of output `~slot` if the slot is negative."""

    slot: int
    axis: int | Cellwise


def into(index: int, axis: int | Cellwise) -> Port:
    return Port(index, axis)


def out(index: int, axis: int | Cellwise) -> Port:
    return Port(~index, axis)


@attrs.frozen(eq=False)
class Same:
    a: Port
    b: Port
    a_index: Index | None = None
    b_index: Index | None = None
    """Positions that pair up; None is every position in order."""


@attrs.frozen
class Regroup:
    factors: tuple[int, ...]
    ports: tuple[tuple[Port, int, int], ...]
    """Each port is the product of `factors[start:stop]`, the last varying fastest."""


@attrs.frozen
class Balanced:
    port: Port
    cells: int


@attrs.frozen
class Summed:
    port: Port
    mean: bool = False
    """Whether the sum is divided by the size of the axis."""


@attrs.frozen
class Restricted:
    port: Port


@attrs.frozen
class Free:
    port: Port


@attrs.frozen
class Blocked:
    port: Port
    reason: str


Tie = Same | Regroup | Balanced | Summed | Restricted | Free | Blocked


@attrs.frozen(kw_only=True, eq=False)
class Site:
    """A node where channels pass."""

    node: Node
    inputs: tuple[Dims | None, ...]
    """None where an input is absent or its rank unknown."""
    outputs: tuple[Dims | None, ...]
    constant: Callable[[int], Array | None]
    """The array of an input that is known before the model runs."""

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def dims(self, slot: int) -> Dims | None:
        found = self.inputs if slot >= 0 else self.outputs
        at = slot if slot >= 0 else ~slot
        return found[at] if at < len(found) else None

    def rank(self, slot: int) -> int:
        return len(self.dims(slot) or ())

    def size(self, slot: int, axis: int) -> int | None:
        """The static size of an axis; None if it is dynamic or there is none."""
        dims = self.dims(slot)
        if dims is None or not -len(dims) <= axis < len(dims):
            return None
        size = dims[axis]
        return size if isinstance(size, int) else None

    def setting(self, attribute: str, index: int) -> list[int] | None:
        """Integers that are an attribute in early opsets and a constant input later; None if absent or computed."""
        given = self.constant(index) if self.has(index) else None
        if given is not None:
            return [int(v) for v in np.asarray(given).reshape(-1)]
        value = self.node.get(attribute)
        return None if value is None else [int(v) for v in value]


@attrs.frozen(kw_only=True, eq=False)
class Edit:
    """What a removal changes about a node, beside the sizes of its values."""

    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    vectors: Mapping[int, Mapping[int, int]] = attrs.field(factory=dict)
    """By input, new elements of a vector of sizes by position; the vector may be computed by the graph."""
    inputs: Mapping[int, Array] = attrs.field(factory=dict)
    """By input, a new constant."""
    op_type: str | None = None
    frozen: Mapping[int, int] = attrs.field(factory=dict)
    """Elements of the node's result (a shape) that must keep these values."""


Kept = Callable[[Port], "NDArray[np.bool_] | None"]
"""What stays of a port; None if nothing is removed there."""
Ties = Callable[[Site], Iterable[Tie]]


@attrs.frozen(eq=False)
class Channels:
    """The channel rule of an operator."""

    ties: Ties
    edit: Callable[[Site, Kept], Edit | None] | None = None

    def __call__(self, site: Site) -> Iterable[Tie]:
        return self.ties(site)


# --- rules that many operators share ----------------------------------------------------------------------------------


def pointwise_ties(site: Site, inputs: Iterable[int] | None = None, output: int = 0) -> Iterator[Tie]:
    """Axes aligned from the last, as NumPy broadcasts; an axis of size one has no channels of its own."""
    result = site.outputs[output]
    if result is None:
        return
    for index in range(len(site.inputs)) if inputs is None else inputs:
        dims = site.inputs[index] if index < len(site.inputs) else None
        for back in range(1, min(len(dims or ()), len(result)) + 1):
            if dims is None or not isinstance(result[-back], int) or dims[-back] == 1:
                continue
            there = out(output, len(result) - back)
            if dims[-back] == result[-back]:
                yield Same(into(index, len(dims) - back), there)
            else:
                yield Blocked(there, f"the size of axis {len(dims) - back} of input {index} is not known")


POINTWISE = Channels(pointwise_ties)


def unary_ties(site: Site) -> Iterator[Tie]:
    """Every output has the axes of the first input; further inputs are scalars."""
    for output, dims in enumerate(site.outputs):
        if dims is not None and len(dims) == site.rank(0):
            yield from pointwise_ties(site, (0,), output)


UNARY = Channels(unary_ties)


def second_axis_ties(site: Site) -> Iterator[Tie]:
    """Channels on axis 1, each treated alone (pooling)."""
    yield Same(into(0, 1), out(0, 1))


SECOND_AXIS = Channels(second_axis_ties)


def except_axes(site: Site, axes: Iterable[int], reason: str) -> Iterator[Tie]:
    """Every axis is the output's, but the node works along some of them."""
    along = set(axes)
    for axis in range(site.rank(0)):
        yield Blocked(into(0, axis), reason) if axis in along else Same(into(0, axis), out(0, axis))


def regroup_ties(site: Site) -> Iterator[Tie]:
    """Of a reshape: equal sizes are stripped from both ends, what is left is cut into blocks of equal products.

    Elements keep their order, so that a block is one list of factors on both sides. Axes of size one carry nothing.
    """
    source, target = site.inputs[0], site.outputs[0]
    if source is None or target is None:
        return
    a = [(into(0, i), n) for i, n in enumerate(source) if n != 1]
    b = [(out(0, i), n) for i, n in enumerate(target) if n != 1]
    left: list[Tie] = []
    while a and b and a[0][1] == b[0][1] and a[0][1] is not None:
        if isinstance(a[0][1], int):
            left.append(Same(a[0][0], b[0][0]))
        a, b = a[1:], b[1:]
    yield from left
    while a and b:
        ones, others = _block(a), _block(b)
        while ones and others and math.prod(s for _, s in ones) != math.prod(s for _, s in others):
            shorter, rest = (
                (ones, a) if math.prod(s for _, s in ones) < math.prod(s for _, s in others) else (others, b)
            )
            if len(shorter) == len(rest) or not isinstance(rest[-len(shorter) - 1][1], int):
                return
            port, size = rest[-len(shorter) - 1]
            assert isinstance(size, int)
            shorter.insert(0, (port, size))
        if not ones or not others:
            return
        a, b = a[: -len(ones)], b[: -len(others)]
        tie = _regroup(ones, others)
        if tie is not None:
            yield tie


Sized = list[tuple[Port, int]]


def _block(axes: Sequence[tuple[Port, Any]]) -> Sized:
    """The last axis, if its size is static."""
    return [axes[-1]] if isinstance(axes[-1][1], int) else []


def _regroup(ones: Sized, others: Sized) -> Tie | None:
    """The common factors of two lists of sizes with one product; None if their boundaries do not nest."""
    if len(ones) == len(others) == 1:
        return Same(ones[0][0], others[0][0])
    bounds = sorted({b for sizes in (ones, others) for b in _bounds(sizes)})
    if any(high % low for low, high in itertools.pairwise(bounds)):
        return None
    factors = tuple(high // low for low, high in itertools.pairwise(bounds))[::-1]
    ports = []
    for sizes in (ones, others):
        edges = _bounds(sizes)  # from the last axis to the first
        for (port, _), low, high in zip(reversed(sizes), edges, edges[1:], strict=False):
            ports.append((port, len(factors) - bounds.index(high), len(factors) - bounds.index(low)))
    return Regroup(factors, tuple(ports))


def _bounds(sizes: Sized) -> list[int]:
    found = [1]
    for _, size in reversed(sizes):
        found.append(found[-1] * size)
    return found


def kept_sizes(site: Site, kept: Kept, slot: int) -> dict[int, int]:
    """The new size of every axis of a value that loses channels."""
    masks = {axis: kept(Port(slot, axis)) for axis in range(site.rank(slot))}
    return {axis: int(mask.sum()) for axis, mask in masks.items() if mask is not None}
