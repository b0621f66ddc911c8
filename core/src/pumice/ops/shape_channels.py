"""Channel rules of operators that move, slice or describe data: which position goes where, and the sizes they name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pumice.ops.channels import (
    UNARY,
    Blocked,
    Channels,
    Edit,
    Free,
    Kept,
    Same,
    Site,
    Tie,
    except_axes,
    into,
    kept_sizes,
    out,
    regroup_ties,
)  # fmt: skip
from pumice.ops.record import Array


def python_slice(start: int, end: int, step: int, size: int) -> slice:
    """Out-of-range bounds clamp; for a negative step an end before the first element includes it."""
    start, end = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    if start < 0 or size == 0:
        return slice(0)
    return slice(min(start, size - 1), None if end < 0 else min(end, size - 1), step)


def _shape_ties(site: Site) -> Iterator[Tie]:
    """The sizes that it tells the rest of the graph stay those of the whole model; targets are rewritten instead."""
    for axis in range(site.rank(0)):
        yield Free(into(0, axis))


def _shape_edit(site: Site, kept: Kept) -> Edit:
    start = range(site.rank(0))[site.node.get("start", 0) : site.node.get("end")].start
    sizes = {axis: site.size(0, axis) for axis in kept_sizes(site, kept, 0)}
    return Edit(frozen={axis - start: size for axis, size in sizes.items() if size is not None and axis >= start})


def _target_edit(site: Site, kept: Kept) -> Edit:
    """New sizes in the target; -1 stays, for it follows by itself."""
    old = site.setting("shape", 1)
    new = {axis: n for axis, n in kept_sizes(site, kept, ~0).items() if old is None or old[axis] != -1}
    if not site.has(1) and old is not None:
        return Edit(attributes={"shape": [new.get(axis, n) for axis, n in enumerate(old)]})
    return Edit(vectors={1: new})


def _squeezed_ties(site: Site) -> Iterator[Tie]:
    """The axes of the longer value that are not among `axes` are those of the shorter one, in order."""
    longer, shorter = (into, out) if site.node.op_type == "Squeeze" else (out, into)
    rank = site.rank(longer(0, 0).slot)
    axes = site.setting("axes", 1)
    if axes is None:
        yield from regroup_ties(site)
        return
    gone = {axis % rank for axis in axes}
    for place, axis in enumerate(axis for axis in range(rank) if axis not in gone):
        yield Same(longer(0, axis), shorter(0, place))


def _transpose_ties(site: Site) -> Iterator[Tie]:
    for place, axis in enumerate(site.node.get("perm") or reversed(range(site.rank(0)))):
        yield Same(into(0, axis), out(0, place))


def _concat_ties(site: Site) -> Iterator[Tie]:
    """Along the axis each input begins where the one before it ends."""
    along = site.node.get("axis", 1) % max(site.rank(~0), 1)
    for axis in range(site.rank(~0)):
        offset: int | None = 0
        for index in range(len(site.inputs)):
            size = site.size(index, axis)
            if axis != along:
                yield Same(into(index, axis), out(0, axis))
            elif size is not None and offset is not None:
                yield Same(into(index, axis), out(0, axis), np.arange(size), offset + np.arange(size))
            offset = None if offset is None or size is None else offset + size


def _split_ties(site: Site) -> Iterator[Tie]:
    along = site.node.get("axis", 0) % max(site.rank(0), 1)
    offset: int | None = 0
    for output in range(len(site.outputs)):
        for axis in range(site.rank(0)):
            if axis != along:
                yield Same(into(0, axis), out(output, axis))
        size = site.size(~output, along)
        offset = None if size is None else offset
        if size is not None and offset is not None:
            yield Same(into(0, along), out(output, along), offset + np.arange(size), np.arange(size))
            offset += size


def _split_edit(site: Site, kept: Kept) -> Edit | None:
    """The parts need no longer be equal, so their sizes are written out."""
    along = site.node.get("axis", 0) % max(site.rank(0), 1)
    masks = [kept(out(i, along)) for i in range(len(site.outputs))]
    if all(mask is None for mask in masks):
        return None
    sizes = [site.size(~i, along) if mask is None else int(mask.sum()) for i, mask in enumerate(masks)]
    if site.node.opset < 13:
        return Edit(attributes={"split": sizes})
    return Edit(attributes={"num_outputs": None}, inputs={1: np.array(sizes, np.int64)})


def _slices(site: Site) -> dict[int, range] | None:
    """The positions read along each sliced axis of static size; None if they are not known before the run."""
    starts, ends = site.setting("starts", 1), site.setting("ends", 2)
    axes, steps = site.setting("axes", 3), site.setting("steps", 4)
    if starts is None or ends is None or (site.has(3) and axes is None) or (site.has(4) and steps is None):
        return None
    found = {}
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        size = site.size(0, axis)
        if size is not None:
            part = python_slice(starts[i], ends[i], 1 if steps is None else steps[i], size)
            found[axis % site.rank(0)] = range(size)[part]
    return found


def _slice_ties(site: Site) -> Iterator[Tie]:
    read = _slices(site)
    axes = site.setting("axes", 3)
    if read is None and axes is None:
        return
    if read is None:  # the bounds are computed: the axis that is cut stays, the others pass
        yield from except_axes(site, [axis % site.rank(0) for axis in axes or ()], "the bounds of a slice are computed")
        return
    for axis in range(site.rank(0)):
        if axis in read:
            positions = np.array(read[axis], np.int64)
            yield Same(into(0, axis), out(0, axis), positions, np.arange(len(positions)))
        elif site.size(0, axis) == site.size(~0, axis):
            yield Same(into(0, axis), out(0, axis))


def _slice_edit(site: Site, kept: Kept) -> Edit:
    """What is read of what is left, renumbered; with a step it may be regular no more and becomes a `Gather`."""
    read = _slices(site) or {}
    masks = {axis: mask for axis in read if (mask := kept(into(0, axis))) is not None}
    if len(read) == 1 and len(masks) == 1 and next(iter(read.values())).step != 1:
        ((axis, mask),) = masks.items()
        names = ("starts", "ends", "axes", "steps")
        return Edit(
            op_type="Gather",
            attributes={**dict.fromkeys(names), "axis": axis},
            inputs={1: _renumbered(np.array(read[axis]), mask)},
        )
    places = list(range(site.rank(0))) if site.setting("axes", 3) is None else site.setting("axes", 3) or []
    starts, ends = site.setting("starts", 1) or [], site.setting("ends", 2) or []
    for i, axis in enumerate(axis % site.rank(0) for axis in places[: len(starts)]):
        if axis in masks:
            chosen = _renumbered(np.array(read[axis], np.int64), masks[axis])
            starts[i] = int(chosen[0]) if len(chosen) else 0
            ends[i] = starts[i] + len(chosen)
    if site.has(1):
        return Edit(inputs={1: np.array(starts, np.int64), 2: np.array(ends, np.int64)})
    return Edit(attributes={"starts": starts, "ends": ends})


def _renumbered(positions: Array, mask: Array) -> Array:
    """Where the positions that are left lie among all that are left."""
    return np.asarray((np.cumsum(mask) - 1)[positions[mask[positions]]], np.int64)


def _expand_ties(site: Site) -> Iterator[Tie]:
    """An axis that is repeated from size one may have any size."""
    source, target = site.rank(0), site.rank(~0)
    for back in range(1, target + 1):
        if back <= source and site.size(0, source - back) == site.size(~0, target - back):
            yield Same(into(0, source - back), out(0, target - back))
        else:
            yield Free(out(0, target - back))


def _expand_edit(site: Site, kept: Kept) -> Edit:
    asked = site.dims(1)
    length = asked[0] if asked and isinstance(asked[0], int) else site.rank(~0)
    shift = site.rank(~0) - length
    return Edit(vectors={1: {a - shift: n for a, n in kept_sizes(site, kept, ~0).items() if a >= shift}})


def _tile_ties(site: Site) -> Iterator[Tie]:
    for axis in range(site.rank(0)):
        size, whole = site.size(0, axis), site.size(~0, axis)
        if size and whole is not None:
            yield Same(into(0, axis), out(0, axis), np.arange(whole) % size, np.arange(whole))


def _pad_amounts(site: Site) -> dict[int, tuple[int, int]] | None:
    amounts = site.setting("pads", 1) or site.setting("paddings", 5)
    axes = site.setting("axes", 3)
    if amounts is None or (site.has(3) and axes is None):
        return None
    along = [axis % site.rank(0) for axis in (axes or range(site.rank(0)))]
    return {axis: (amounts[i], amounts[i + len(along)]) for i, axis in enumerate(along)}


def _pad_ties(site: Site) -> Iterator[Tie]:
    """Padded channels are new ones, if they hold a constant."""
    amounts = _pad_amounts(site)
    if amounts is None:
        return
    for axis in range(site.rank(0)):
        before, after = amounts.get(axis, (0, 0))
        size = site.size(0, axis)
        if before == after == 0:
            yield Same(into(0, axis), out(0, axis))
        elif size is not None and min(before, after) >= 0 and site.node.get("mode", "constant") == "constant":
            yield Same(into(0, axis), out(0, axis), np.arange(size), before + np.arange(size))


def _pad_edit(site: Site, kept: Kept) -> Edit | None:
    amounts = _pad_amounts(site) or {}
    changed = {}
    for axis, (before, after) in amounts.items():
        mask = kept(out(0, axis))
        if mask is not None and (before or after):
            changed[axis] = (int(mask[:before].sum()), int(mask[len(mask) - after :].sum()) if after else 0)
    if not changed:
        return None
    new = {**amounts, **changed}
    pads = [new[axis][side] for side in (0, 1) for axis in amounts]
    return Edit(inputs={1: np.array(pads, np.int64)}) if site.has(1) else Edit(attributes={"pads": pads})


def _block_ties(site: Site) -> Iterator[Tie]:
    """A channel of the deeper value for every place of the block: all of them go together."""
    deep, flat = (into, out) if site.node.op_type == "DepthToSpace" else (out, into)
    depth, channels = site.size(flat(0, 0).slot, 1), site.size(deep(0, 0).slot, 1)
    if depth is None or channels is None:
        return
    nested = site.node.get("mode", "DCR") == "DCR" or site.node.op_type == "SpaceToDepth"
    places = np.arange(channels)
    yield Same(deep(0, 1), flat(0, 1), places, places % depth if nested else places // (channels // depth))


def _trilu_ties(site: Site) -> Iterator[Tie]:
    rank = site.rank(0)
    yield from except_axes(site, (rank - 2, rank - 1), "Trilu cuts a triangle out of the axis")


def _reverse_ties(site: Site) -> Iterator[Tie]:
    axes = (site.node.get("batch_axis", 1), site.node.get("time_axis", 0))
    yield from except_axes(site, axes, "ReverseSequence turns the axis round")


def _crop_ties(site: Site) -> Iterator[Tie]:
    for axis in range(site.rank(0)):
        if site.size(0, axis) == site.size(~0, axis):
            yield Same(into(0, axis), out(0, axis))
        else:
            yield Blocked(into(0, axis), "CenterCropPad centres the axis")


CHANNELS: dict[str, Channels] = {
    "Shape": Channels(_shape_ties, _shape_edit),
    "Reshape": Channels(regroup_ties, _target_edit),
    "Flatten": Channels(regroup_ties),
    "Squeeze": Channels(_squeezed_ties),
    "Unsqueeze": Channels(_squeezed_ties),
    "Identity": UNARY,
    "Transpose": Channels(_transpose_ties),
    "Concat": Channels(_concat_ties),
    "Split": Channels(_split_ties, _split_edit),
    "Slice": Channels(_slice_ties, _slice_edit),
    "Expand": Channels(_expand_ties, _expand_edit),
    "Pad": Channels(_pad_ties, _pad_edit),
    "Tile": Channels(_tile_ties),
    "DepthToSpace": Channels(_block_ties),
    "SpaceToDepth": Channels(_block_ties),
    "CenterCropPad": Channels(_crop_ties),
    "Trilu": Channels(_trilu_ties),
    "ReverseSequence": Channels(_reverse_ties),
}
