"""The closure of ties from one axis: which positions of which axes, across the whole graph, are the same channel.

Every position of the root axis starts as a channel of its own. A tie carries channels from one place to another; where
two channels meet in one position they become one (union-find). Three things cannot be settled when they are met and
wait until nothing else moves:

    Regroup   an axis of heads * size whose channels are neither whole heads nor whole positions of all heads: they are
              merged until they are, along the first factor
    Balanced  cells must lose equally many: the r-th channel of every cell become one channel
    walls     a channel that reaches a place which may not change is blocked, with the reason

The outcome does not depend on the order, but for the choices above, which follow the order of the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.ops.channels import Balanced, Regroup, Same, Tie
from pumice.prune.wiring import Place, Wired, Wiring

Labels = NDArray[np.int64]
UNKNOWN = -1


@attrs.frozen(eq=False)
class Closed:
    """The closure of one root."""

    labels: Mapping[Place, Labels]
    """The channel at every position of every place that was reached; UNKNOWN where no channel of the root lies."""
    blocked: Mapping[int, str]
    """Channels that may not be removed, with the first reason found."""

    def alive(self, labels: Labels) -> Labels:
        """The channels that may be removed, UNKNOWN elsewhere."""
        fixed = np.fromiter(self.blocked, np.int64, len(self.blocked))
        return np.where(np.isin(labels, fixed), UNKNOWN, labels)


def close(wiring: Wiring, root: Place) -> Closed:
    """The closure from a place of static size."""
    return _Closure(wiring).run(root)


class _Closure:
    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.parent = np.empty(0, np.int64)
        self.labels: dict[Place, Labels] = {}
        self.blocked: dict[int, str] = {}
        self.queue: deque[int] = deque()
        self.waiting: dict[tuple[int, int], None] = {}
        """(node, tie) of what can only be settled when nothing else moves, in the order found."""
        self.changed = False

    def run(self, root: Place) -> Closed:
        size = self.wiring.size(root) or 0
        self.parent = np.arange(size)
        self.assign(root, np.arange(size), np.arange(size))
        while True:
            while self.queue:
                number = self.queue.popleft()
                self.visit(number, self.wiring.nodes[number])
            self.changed = False
            for number, tie in list(self.waiting):
                self.settle(self.wiring.nodes[number], self.wiring.nodes[number].ties[tie])
                if self.changed:
                    break
            if not self.changed and not self.queue:
                return Closed({place: self.find(found) for place, found in self.labels.items()}, self.roots())

    # --- union-find ---------------------------------------------------------------------------------------------------

    def find(self, labels: Labels) -> Labels:
        """The channels that labels stand for now."""
        found = np.where(labels >= 0, self.parent[labels], UNKNOWN)
        while True:
            next_ = np.where(found >= 0, self.parent[found], UNKNOWN)
            if np.array_equal(next_, found):
                return found
            found = next_

    def roots(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for label, reason in self.blocked.items():
            found.setdefault(int(self.find(np.array([label]))[0]), reason)
        return found

    def unite(self, ones: Labels, others: Labels) -> None:
        both = (ones >= 0) & (others >= 0)
        pairs = np.stack([self.find(ones[both]), self.find(others[both])], axis=1)
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        for one, other in pairs.tolist():
            low, high = sorted(self.find(np.array([one, other])).tolist())
            if low != high:
                self.parent[high] = low
                self.changed = True

    def block(self, labels: Labels, reason: str) -> None:
        for label in np.unique(self.find(labels[labels >= 0])).tolist():
            self.blocked.setdefault(label, reason)

    # --- propagation --------------------------------------------------------------------------------------------------

    def assign(self, place: Place | None, index: Labels, labels: Labels) -> None:
        """Say that the channels `labels` lie at the positions `index` of a place."""
        known = labels >= 0
        if place is None or not known.any():
            return
        size = self.wiring.size(place)
        if size is None or (len(index) and index.max() >= size):
            self.block(labels, f"the size of axis {place.axis} of '{place.value}' is not static")
            return
        index, labels = index[known], labels[known]
        held = self.labels.setdefault(place, np.full(size, UNKNOWN))
        fresh = held[index] < 0
        held[index[fresh]] = labels[fresh]
        self.unite(held[index], labels)
        if fresh.any():
            self.changed = True
            if reason := self.wiring.wall(place):
                self.block(labels, reason)
            for number in self.wiring.touching.get(place.value, ()):
                if number not in self.queue:
                    self.queue.append(number)

    def visit(self, number: int, wired: Wired) -> None:
        for at, tie in enumerate(wired.ties):
            if isinstance(tie, Same):
                self.carry_same(wired, tie)
            elif self.must_wait(wired, tie):
                self.waiting[number, at] = None
        for place, reason in wired.blocked.items():
            if place in self.labels:
                self.block(self.labels[place], reason)

    def must_wait(self, wired: Wired, tie: Tie) -> bool:
        if isinstance(tie, Regroup):
            return not self.regroup(wired, tie, force=False)
        return isinstance(tie, Balanced) and wired.place(tie.port) in self.labels

    def carry_same(self, wired: Wired, tie: Same) -> None:
        a, b = wired.place(tie.a), wired.place(tie.b)
        for source, target, taken, put in ((a, b, tie.a_index, tie.b_index), (b, a, tie.b_index, tie.a_index)):
            if source is not None and source in self.labels:
                labels = self.labels[source] if taken is None else self.labels[source][taken]
                self.assign(target, np.arange(len(labels)) if put is None else put, labels)

    # --- what waits ---------------------------------------------------------------------------------------------------

    def settle(self, wired: Wired, tie: Any) -> None:
        if isinstance(tie, Regroup):
            self.regroup(wired, tie, force=True)
        else:
            place = wired.place(tie.port)
            if place in self.labels:
                self.balance(self.labels[place], tie.cells)

    def regroup(self, wired: Wired, tie: Regroup, force: bool) -> bool:
        """Carry channels between the ports of a reshape; False if some cannot be yet."""
        settled = True
        for port, start, stop in tie.ports:
            place = wired.place(port)
            if place is None or place not in self.labels:
                continue
            grid = self.find(self.labels[place]).reshape(tie.factors[start:stop])
            factor = _carrier(grid)
            if factor is None and force:
                grid, factor = self.coarsen(grid)
            if factor is None:
                settled = False
                continue
            self.spread(wired, tie, start + factor, np.moveaxis(grid, factor, 0).reshape(grid.shape[factor], -1)[:, 0])
        return settled

    def spread(self, wired: Wired, tie: Regroup, factor: int, labels: Labels) -> None:
        """Give every port that holds a factor the channels that lie along it."""
        for port, start, stop in tie.ports:
            if start <= factor < stop:
                shape = tie.factors[start:stop]
                along = [n if start + i == factor else 1 for i, n in enumerate(shape)]
                whole = np.broadcast_to(labels.reshape(along), shape).reshape(-1)
                self.assign(wired.place(port), np.arange(len(whole)), whole)

    def coarsen(self, grid: Labels) -> tuple[Labels, int | None]:
        """Merge channels until each is a slice of the first factor; a slice partly free of channels blocks them."""
        factor = next(axis for axis, size in enumerate(grid.shape) if size > 1)
        slices = np.moveaxis(grid, factor, 0).reshape(grid.shape[factor], -1)
        mixed = (slices < 0).any(axis=1) & (slices >= 0).any(axis=1)
        if mixed.any():
            self.block(slices[mixed].reshape(-1), "a reshape splits it into pieces of which only some are channels")
            return grid, None
        for row in slices:
            self.unite(np.full(len(row) - 1, row[0]), row[1:])
        grid = self.find(grid.reshape(-1)).reshape(grid.shape)
        return grid, factor

    def balance(self, labels: Labels, cells: int) -> None:
        """Make every cell lose equally many, by uniting the r-th channels of all cells."""
        grid = self.find(labels).reshape(cells, -1)
        fixed = {int(self.find(np.array([label]))[0]) for label in self.blocked}
        counts = {label: (grid == label).sum(axis=1) for label in np.unique(grid[grid >= 0]).tolist()}
        uneven = {label: n for label, n in counts.items() if label not in fixed and n.min() != n.max()}
        straddling = [label for label, n in uneven.items() if (n > 0).sum() > 1]
        self.block(np.array(straddling, np.int64), "it lies across the groups of a grouped operator")
        whole = {label: n for label, n in uneven.items() if (n > 0).sum() == 1}
        for width in sorted({int(n.max()) for n in whole.values()}):
            rows = [_in_order(grid[cell], whole, cell, width) for cell in range(cells)]
            shortest = min(map(len, rows))
            for row in rows[1:]:
                self.unite(np.array(rows[0][:shortest], np.int64), np.array(row[:shortest], np.int64))
            for row in rows:
                self.block(np.array(row[shortest:], np.int64), "the groups of a grouped operator must stay equal")


def _carrier(grid: Labels) -> int | None:
    """The axis along which alone a grid of channels varies; None if there is no such axis."""
    for axis in range(grid.ndim):
        rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        if grid.shape[axis] > 1 and (rows == rows[:, :1]).all():
            return axis
    return None


def _in_order(cell: Labels, whole: Mapping[int, Any], number: int, width: int) -> list[int]:
    """The channels of this width that lie in a cell alone, by first position."""
    seen: Iterable[int] = dict.fromkeys(cell[cell >= 0].tolist())
    return [label for label in seen if label in whole and whole[label][number] == width]
