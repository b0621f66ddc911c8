"""Which channels go: the scores of all groups, and a target, become indices for each, under floors and multiples.

    local    every group loses the same share of its channels
    global   the channels of all groups are ranked together and the lowest go
    scopes   as global, but the groups that a pattern names are ranked among themselves

A group keeps at least `floor` channels, at least the share `least`, and a multiple of `multiple` where it has twice as
many. All shares are of what there was before the first round. Where the target is a share of a cost
(multiply-accumulates, parameters, a measured latency), the share of channels that reaches it is found by bisection: the
cost falls as more channels go.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.prune.groups import ChannelGroup, Cuts, union

Scores = NDArray[Any]
Removed = dict[str, list[int]]
"""By group, the channels that go."""


@attrs.frozen(kw_only=True)
class Limits:
    """What a group must keep."""

    floor: int = 1
    least: float = 0.0
    multiple: int = 1

    def keep(self, channels: int, wanted: int, whole: int | None = None) -> int:
        """How many of `channels`, once `whole`, stay if `wanted` should: one at least, no more than there are."""
        whole = whole or channels
        keep = max(wanted, self.floor, math.ceil(self.least * whole), 1)
        if whole >= 2 * self.multiple:
            keep = -(-keep // self.multiple) * self.multiple
        return min(keep, channels)


def select(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Scores],
    share: float,
    limits: Limits,
    scope: str = "local",
    patterns: Sequence[str] = (),
    whole: Mapping[str, int] | None = None,
) -> Removed:
    """The channels that go if a share of all channels should be gone.

    Args:
        groups: as they are.
        scores: of their channels.
        share: of all channels, those that went before included.
        limits: what a group must keep.
        scope: whose channels are ranked together.
        patterns: of scopes.
        whole: channels before the first round; those of `groups` if this is the first.
    """
    whole = whole or {g.name: g.channels for g in groups}
    if scope == "local":
        wanted = {g.name: whole[g.name] - round(share * whole[g.name]) for g in groups}
        return _kept(groups, scores, wanted, limits, whole)
    removed: Removed = {}
    for part in _scopes(groups, patterns if scope == "scopes" else ()):
        removed |= _ranked(part, scores, share, limits, whole)
    return removed


def _scopes(groups: Sequence[ChannelGroup], patterns: Sequence[str]) -> list[list[ChannelGroup]]:
    """The groups of each pattern, the first that fits; what no pattern names is a scope of its own."""
    found: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        scope = next((p for p in patterns if fnmatch.fnmatchcase(group.name, p)), "")
        found.setdefault(scope, []).append(group)
    return list(found.values())


def _ranked(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Scores], share: float, limits: Limits, whole: Mapping[str, int]
) -> Removed:
    """The lowest of all channels together; what a group must keep is not spread over the others."""
    ranking = np.sort(np.concatenate([scores[g.name] for g in groups]), kind="stable")
    count = round(share * sum(whole[g.name] for g in groups)) - sum(whole[g.name] - g.channels for g in groups)
    if count <= 0:
        return {g.name: [] for g in groups}
    threshold = ranking[count - 1]
    return _kept(groups, scores, {g.name: int((scores[g.name] > threshold).sum()) for g in groups}, limits, whole)


def _kept(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Scores],
    wanted: Mapping[str, int],
    limits: Limits,
    whole: Mapping[str, int],
) -> Removed:
    keep = {g.name: limits.keep(g.channels, wanted[g.name], whole[g.name]) for g in groups}
    return {g.name: _lowest(scores[g.name], keep[g.name]) for g in groups}


def _lowest(scores: Scores, keep: int) -> list[int]:
    return sorted(np.argsort(scores, kind="stable")[: len(scores) - keep].tolist())


def reach(choose: Callable[[float], Removed], left: Callable[[Removed], float], wanted: float, steps: int) -> Removed:
    """The smallest selection after which at most `wanted` is left of a cost; as near as the limits allow.

    Args:
        choose: the selection for a share of the channels.
        left: what is left of the cost after a selection.
        wanted: how much of it should be.
        steps: bisections.
    """
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if left(choose(middle)) > wanted else (low, middle)
    return choose(high)


def cuts_of(groups: Sequence[ChannelGroup], removed: Removed) -> Cuts:
    """What a selection takes out of the graph."""
    return union(group.cuts(removed.get(group.name, [])) for group in groups)
