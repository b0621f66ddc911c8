"""Channel groups: the axes, across the whole graph, that must lose the same indices together.

Groups are found from roots: first the factors of every axis that a reshape splits (heads and the size of a head are two
groups over the same weights), then the outputs of every node that has a weight, in the order of the graph. A root that
lies in a group already found is passed over, so a group appears once however many writers it has. Channels that reach
a wall leave the group with the reason; a group of fewer than two channels has none to lose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.ops import OpTable
from pumice.ops.channels import Regroup, Same, Summed
from pumice.prune.closure import UNKNOWN, Closed, Labels, close
from pumice.prune.sizes import with_sizes
from pumice.prune.wiring import Place, Wired, Wiring

Mask = NDArray[np.bool_]
Cuts = Mapping[Place, Mask]
"""True where a position of a place is removed."""


@attrs.frozen(eq=False)
class Member:
    """An axis of a group."""

    place: Place
    index: Labels
    """The channel of the group at every position; UNKNOWN (-1) where the position belongs to none."""
    weight: bool
    """Whether the value is an initializer of at least two axes: what a scorer looks at."""
    reader: bool
    """Whether the axis is summed over: the weights that read the channels, not those that write them."""


@attrs.frozen(eq=False)
class ChannelGroup:
    """What is pruned together. Channels are numbered from 0 in the order of the root axis."""

    name: str
    """The node that the root belongs to; `node/2` for its axis 2 if another group has the plain name."""
    root: Place
    channels: int
    members: tuple[Member, ...]
    blockers: Mapping[str, int]
    """Reasons, with how many channels of the root they hold back."""

    def cuts(self, removed: Iterable[int]) -> dict[Place, Mask]:
        """What a removal of these channels takes out of every member."""
        gone = np.zeros(self.channels + 1, bool)
        gone[list(removed)] = True
        gone[-1] = False  # UNKNOWN
        found = {member.place: gone[member.index] for member in self.members}
        return {place: mask for place, mask in found.items() if mask.any()}

    @property
    def writers(self) -> tuple[Member, ...]:
        """The weights that make the channels."""
        return tuple(member for member in self.members if member.weight and not member.reader)

    @property
    def readers(self) -> tuple[Member, ...]:
        """The weights that read the channels."""
        return tuple(member for member in self.members if member.weight and member.reader)


@attrs.frozen(eq=False)
class Groups:
    """Every group of a model."""

    wiring: Wiring
    free: tuple[ChannelGroup, ...]
    """Groups that can lose channels."""
    held: tuple[ChannelGroup, ...]
    """Groups that cannot; their `blockers` say why."""


TIED = "a rule ties all channels into one"


def find_groups(model: ir.Model, ops: OpTable | None = None) -> Groups:
    """The channel groups of a loaded model (constants lifted, functions inlined); it is left unchanged."""
    wiring = Wiring.of(with_sizes(model), ops)
    found = _Found(wiring)
    for place in _factors(wiring):
        found.look(place, quiet=True)
    for place in _outputs_of_weights(wiring):
        found.look(place, quiet=False)
    return Groups(wiring, tuple(found.free), tuple(found.held))


def union(cuts: Iterable[Cuts]) -> dict[Place, Mask]:
    """What several removals take out together."""
    found: dict[Place, Mask] = {}
    for each in cuts:
        for place, mask in each.items():
            found[place] = found[place] | mask if place in found else mask
    return found


def _factors(wiring: Wiring) -> Iterator[Place]:
    """Axes that are one factor of another axis, on the other side of a reshape."""
    for wired in wiring.nodes:
        for tie in wired.ties:
            if isinstance(tie, Regroup):
                for port, start, stop in tie.ports:
                    place = wired.place(port)
                    wider = any(s <= start < e and e - s > 1 for _, s, e in tie.ports)
                    if stop - start == 1 and wider and place is not None and tie.factors[start] > 1:
                        yield place


def _outputs_of_weights(wiring: Wiring) -> Iterator[Place]:
    """Axes of results that are axes of a constant, at nodes that multiply by it or look it up."""
    for wired in wiring.nodes:
        if not any(isinstance(tie, Summed) for tie in wired.ties) and wired.node.op_type != "Gather":
            continue
        for tie in wired.ties:
            if isinstance(tie, Same):
                inner, outer = sorted((tie.a, tie.b), key=lambda port: port.slot, reverse=True)
                source, result = wired.place(inner), wired.place(outer)
                if inner.slot >= 0 > outer.slot and source is not None and result is not None:
                    value = wiring.values[source.value]
                    if source.value in wiring.constants and len(value.shape or ()) > 1:
                        yield result


class _Found:
    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.free: list[ChannelGroup] = []
        self.held: list[ChannelGroup] = []
        self.covered: dict[Place, Mask] = {}
        self.names: set[str] = set()
        self.reading = _reading(wiring)
        self.writer_of = {str(v.name): wired for wired in wiring.nodes for v in wired.node.outputs}

    def look(self, root: Place, quiet: bool) -> None:
        """Add the group of a root, unless it is known; of a quiet root only one that can lose channels."""
        size = self.wiring.size(root)
        if size is None or size < 2 or (root in self.covered and self.covered[root].all()):
            return
        closed = close(self.wiring, root)
        group = self.group(root, closed)
        alive = group.channels > 1 and any(member.weight for member in group.members)
        if quiet and not alive:
            return
        if alive:
            self.free = [g for g in self.free if not _covers(group, g.root)]
        (self.free if alive else self.held).append(group)
        self.names.add(group.name)
        for place, labels in closed.labels.items():
            mask = labels >= 0
            self.covered[place] = self.covered.get(place, np.zeros_like(mask)) | mask

    def group(self, root: Place, closed: Closed) -> ChannelGroup:
        whole = closed.labels[root]
        number = {label: i for i, label in enumerate(dict.fromkeys(closed.alive(whole).tolist()) if len(whole) else ())}
        number.pop(UNKNOWN, None)
        number = {label: i for i, label in enumerate(number)}
        lookup = np.full(len(whole) + 1, UNKNOWN)
        lookup[list(number)] = list(number.values())
        members = []
        for place, labels in closed.labels.items():
            index = lookup[closed.alive(labels)]
            if (index >= 0).any():
                value = self.wiring.values[place.value]
                weight = value.is_initializer() and len(value.shape or ()) > 1
                members.append(Member(place, index, weight, place in self.reading))
        blockers = Counter(closed.blocked[label] for label in whole.tolist() if label in closed.blocked)
        if len(number) == 1:
            blockers[TIED] += 1
        return ChannelGroup(self.name(root), root, len(number), tuple(members), dict(blockers))

    def name(self, root: Place) -> str:
        writer = self.writer_of.get(root.value)
        plain = str(writer.node.name) if writer is not None else root.value
        return plain if plain not in self.names else f"{plain}/{root.axis}"


def _covers(group: ChannelGroup, root: Place) -> bool:
    """Whether a group holds every position of the root of another, as where channels are added to others by padding."""
    return any(member.place == root and bool((member.index >= 0).all()) for member in group.members)


def _reading(wiring: Wiring) -> set[Place]:
    """Places that are summed over, and those that are position for position the same axis of another operand."""
    found: set[Place] = set()
    for wired in wiring.nodes:
        summed = {place for tie in wired.ties if isinstance(tie, Summed) and (place := wired.place(tie.port))}
        found |= summed
        for tie in wired.ties:
            if isinstance(tie, Same) and tie.a_index is None and tie.b_index is None:
                found |= _other_operand(wired, tie, summed)
    return found


def _other_operand(wired: Wired, tie: Same, summed: set[Place]) -> set[Place]:
    a, b = wired.place(tie.a), wired.place(tie.b)
    if a is None or b is None or min(tie.a.slot, tie.b.slot) < 0:
        return set()
    return {b} if a in summed else {a} if b in summed else set()
