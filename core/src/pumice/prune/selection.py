"""Which channels go: from scores to a set of channels for every group, under floors and multiples.

    local    every group loses the same share of its channels
    global   the channels of all groups are ranked together and the lowest go
    scopes   as global, but the groups that a pattern names are ranked among themselves

A group keeps at least `floor` channels, at least the share `least`, and a multiple of `multiple` where it has twice as
many. Where the target is a share of the multiply-accumulates or of the parameters, the share of channels that reaches
it is found by bisection: both fall as more channels go.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.ops.record import normal
from pumice.prune.groups import ChannelGroup, Cuts, union
from pumice.prune.wiring import Wired, Wiring
from pumice.registry import registry

Scores = NDArray[Any]
Removed = dict[str, list[int]]
"""By group, the channels that go."""

BISECTIONS = 16


@attrs.frozen(kw_only=True)
class Limits:
    """What a group must keep."""

    floor: int = 1
    least: float = 0.0
    multiple: int = 1

    def keep(self, channels: int, wanted: int) -> int:
        """How many of `channels` stay if `wanted` should: never fewer than one, never more than there are."""
        keep = max(wanted, self.floor, math.ceil(self.least * channels), 1)
        if channels >= 2 * self.multiple:
            keep = -(-keep // self.multiple) * self.multiple
        return min(keep, channels)


@attrs.frozen(kw_only=True)
class Size:
    """What a model costs a sample."""

    macs: int
    params: int


def select(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Scores],
    share: float,
    limits: Limits,
    scope: str = "local",
    patterns: Sequence[str] = (),
) -> Removed:
    """The channels that go if a share of all channels should."""
    if scope == "local":
        return {g.name: _lowest(scores[g.name], limits.keep(g.channels, g.channels - round(share * g.channels)))
                for g in groups}  # fmt: skip
    removed: Removed = {}
    for part in _scopes(groups, patterns if scope == "scopes" else ()):
        removed |= _ranked(part, scores, share, limits)
    return removed


def _scopes(groups: Sequence[ChannelGroup], patterns: Sequence[str]) -> list[list[ChannelGroup]]:
    """The groups of each pattern, the first that fits; what no pattern names is a scope of its own."""
    found: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        scope = next((p for p in patterns if fnmatch.fnmatchcase(group.name, p)), "")
        found.setdefault(scope, []).append(group)
    return list(found.values())


def _ranked(groups: Sequence[ChannelGroup], scores: Mapping[str, Scores], share: float, limits: Limits) -> Removed:
    """The lowest of all channels together; what a group must keep is not spread over the others."""
    ranking = np.sort(np.concatenate([scores[g.name] for g in groups]), kind="stable")
    count = round(share * len(ranking))
    if not count:
        return {g.name: [] for g in groups}
    threshold = ranking[count - 1]
    wanted = {g.name: int((scores[g.name] > threshold).sum()) for g in groups}
    return {g.name: _lowest(scores[g.name], limits.keep(g.channels, wanted[g.name])) for g in groups}


def _lowest(scores: Scores, keep: int) -> list[int]:
    return sorted(np.argsort(scores, kind="stable")[: len(scores) - keep].tolist())


# --- targets ----------------------------------------------------------------------------------------------------------


def reach(
    wiring: Wiring, groups: Sequence[ChannelGroup], choose: Callable[[float], Removed], of: str, share: float
) -> Removed:
    """The selection that takes away a share of the `channels`, `macs` or `params`; as near as the limits allow."""
    if of == "channels":
        return choose(share)
    whole = getattr(size(wiring, {}), of)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = getattr(size(wiring, cuts_of(groups, choose(middle))), of)
        low, high = (middle, high) if left > (1 - share) * whole else (low, middle)
    return choose(high)


def cuts_of(groups: Sequence[ChannelGroup], removed: Removed) -> Cuts:
    """What a selection takes out of the graph."""
    return union(group.cuts(removed.get(group.name, [])) for group in groups)


def size(wiring: Wiring, cuts: Cuts) -> Size:
    """Multiply-accumulates and parameters after a removal, counted from shapes (dynamic sizes count as one)."""
    left: dict[str, dict[int, int]] = {}
    for place, mask in cuts.items():
        kept = int((~mask).sum())
        if isinstance(place.axis, int):
            left.setdefault(place.value, {})[place.axis] = kept
        else:
            left.setdefault(place.value, {})[place.axis.axis] = kept // place.axis.cells

    def shape(value: Any) -> list[int] | None:
        if value is None or value.shape is None:
            return None
        sizes = [d if isinstance(d, int) and d >= 0 else 1 for d in value.shape]
        for axis, kept in left.get(str(value.name), {}).items():
            sizes[axis] = kept
        return sizes

    params = sum(
        math.prod(shape(value) or ())
        for value in wiring.model.graph.initializers.values()
        if value.dtype is not None and value.dtype.is_floating_point()
    )
    return Size(macs=sum(_macs(wired, shape) for wired in wiring.nodes), params=params)


def _macs(wired: Wired, shape: Callable[[Any], list[int] | None]) -> int:
    node = wired.site.node
    op = registry().ops.resolve(normal(node.domain), node.op_type, node.opset)
    if op is None or op.cost is None:
        return 0
    inputs, outputs = [shape(v) for v in wired.node.inputs], [shape(v) for v in wired.node.outputs]
    if any(v is not None and v.shape is None for v in (*wired.node.inputs, *wired.node.outputs)):
        return 0
    return op.cost(node, inputs, outputs).macs
