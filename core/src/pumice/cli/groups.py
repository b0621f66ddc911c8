"""`pumice inspect --groups`: what would be pruned together, and what holds the rest back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.cli.console import Console

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.prune import ChannelGroup, Member


def groups_of(model: ir.Model) -> dict[str, Any]:
    """Every group of the model, as it would be pruned, as JSON."""
    from pumice.model import clone, simplify
    from pumice.prune import find_groups

    simplified = clone(model)
    simplify(simplified)
    found = find_groups(simplified)
    return {"groups": [_entry(g) for g in found.free], "blocked": [_entry(g) for g in found.held]}


def _entry(group: ChannelGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "root": str(group.root),
        "channels": group.channels,
        "members": [{"value": m.place.value, "axis": _axis(m), "channels": describe(m)} for m in group.members],
        "blockers": dict(group.blockers),
    }


def _axis(member: Member) -> int:
    axis = member.place.axis
    return axis if isinstance(axis, int) else axis.axis


def describe(member: Member) -> str:
    """The index map in words: `0-63`, `0-63, each 49 in a row`, `0-7, 4 times over`, or how many of how many."""
    index = member.index
    held = np.flatnonzero(index >= 0)
    part = index[held[0] : held[-1] + 1]
    channels = np.unique(part[part >= 0])
    count, span = len(channels), len(part)
    where = f" from position {held[0]} of {len(index)}" if span < len(index) else ""
    names = f"{channels[0]}-{channels[-1]}"
    if span % count == 0:
        if np.array_equal(part, channels):
            return f"{names}{where}"
        if np.array_equal(part, np.repeat(channels, span // count)):
            return f"{names}, each {span // count} in a row{where}"
        if np.array_equal(part, np.tile(channels, span // count)):
            return f"{names}, {span // count} times over{where}"
    return f"{count} channels at {len(held)} of {len(index)} positions"


def show_groups(console: Console, found: dict[str, Any]) -> None:
    from rich.markup import escape

    for group in found["groups"]:
        console.show(
            f"[bold]{escape(group['name'])}[/bold]  {group['channels']} channels, root {escape(group['root'])}"
        )
        for member in group["members"]:
            console.show(f"    {escape(member['value'])} axis {member['axis']}: {member['channels']}")
        for reason, count in group["blockers"].items():
            console.show(f"    held back: {count} channels: {escape(reason)}")
    for group in found["blocked"]:
        reasons = "; ".join(group["blockers"]) or "it has no weight to prune"
        console.show(f"[bold]{escape(group['name'])}[/bold]  blocked: {escape(reasons)}")
    console.show(f"{len(found['groups'])} groups can be pruned, {len(found['blocked'])} cannot")
