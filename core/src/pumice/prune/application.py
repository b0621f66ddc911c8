"""The `prune` step: groups found, scored and cut, round by round, each round proven before the next begins.

The share that is gone after round t of n follows the schedule: all at once; in equal steps; or fast first and slowly at
the end, 1 - (1 - t/n)^3 of the way (Zhu and Gupta, 2017). Each round looks at the model that the last one left, so that
scores are of what is still there.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice.errors import KnobError, ModelError, nearest
from pumice.model import clone
from pumice.prune.groups import ChannelGroup, Cuts, Groups, Mask, find_groups
from pumice.prune.proof import Feeds, Proof, prove
from pumice.prune.reconstruction import reconstruct
from pumice.prune.scoring import Array, ScoringContext, layer_scores, normalised, read_values, sampled
from pumice.prune.selection import Limits, Removed, Scores, Size, cuts_of, reach, select, size
from pumice.prune.surgery import remove
from pumice.prune.wiring import Place, Wiring

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext
    from pumice.steps import Prune
    from pumice.strategy import ImportanceScorer

PROOF_SAMPLES = 4


@attrs.define
class _Account:
    """What became of every group over all rounds."""

    before: dict[str, int] = attrs.field(factory=dict)
    left: dict[str, int] = attrs.field(factory=dict)
    proofs: list[Proof] = attrs.field(factory=list)
    refitted: int = 0


def prune(settings: Prune, scorer: ImportanceScorer, model: ir.Model, context: RunContext) -> ir.Model:
    """The pruned model; `model` is left unchanged.

    Raises:
        KnobError: a pattern that names nothing.
        ModelError: the proof of a removal failed.
    """
    account, current = _Account(), clone(model)
    first = find_groups(current)
    chosen = _eligible(first, settings, context)
    whole = size(first.wiring, {})
    account.before = {group.name: group.channels for group in chosen}
    account.left = dict(account.before)
    for share in _rounds(settings):
        groups = find_groups(current)
        names = set(account.before)
        current = _round(settings, scorer, groups, [g for g in groups.free if g.name in names], share, account, context)
    _report(settings, scorer, first, chosen, account, whole, size(Wiring.of(current), {}), context)
    return current


def _rounds(settings: Prune) -> list[float]:
    """What each round takes of what is left, so that together they take `settings.ratio`."""
    count = 1 if settings.schedule == "one-shot" else settings.rounds
    steps = np.arange(1, count + 1) / count
    gone = settings.ratio * (steps if settings.schedule != "cubic" else 1 - (1 - steps) ** 3)
    before = np.concatenate([[0.0], gone[:-1]])
    return [float(share) for share in (gone - before) / (1 - before)]


def _round(
    settings: Prune,
    scorer: ImportanceScorer,
    groups: Groups,
    chosen: Sequence[ChannelGroup],
    share: float,
    account: _Account,
    context: RunContext,
) -> ir.Model:
    scores = _scores(settings, scorer, groups.wiring, chosen, context)
    limits = Limits(floor=settings.floor, least=settings.least, multiple=settings.multiple)

    def choose(part: float) -> Removed:
        return select(chosen, scores, part, limits, settings.scope, settings.scopes)

    removed = reach(groups.wiring, chosen, choose, settings.of, share)
    cuts = cuts_of(chosen, removed)
    if not cuts:
        return groups.wiring.model
    pruned = remove(groups.wiring, cuts)
    account.proofs.append(prove(groups.wiring, cuts, pruned, _proof_feeds(groups.wiring, context), context.runtime))
    for group in chosen:
        account.left[group.name] = group.channels - len(removed.get(group.name, []))
    if settings.recover == "least-squares":
        pruned, count = _recovered(groups.wiring, cuts, pruned, context)
        account.refitted += count
    return pruned


def _recovered(wiring: Wiring, cuts: Cuts, pruned: ir.Model, context: RunContext) -> tuple[ir.Model, int]:
    values = read_values(wiring, context.calibration, context.runtime)
    data = context.calibration
    assert data is not None  # else `read_values` has refused

    def read(model: ir.Model, name: str, axis: int) -> Array:
        return sampled(model, [(name, axis)], data, context.runtime)[name, axis]

    return reconstruct(wiring, cuts, pruned, values, read)


def _scores(
    settings: Prune, scorer: ImportanceScorer, wiring: Wiring, chosen: Sequence[ChannelGroup], context: RunContext
) -> dict[str, Scores]:
    scoring = ScoringContext(
        wiring=wiring,
        runtime=context.runtime,
        seed=context.seed,
        calibration=context.calibration,
        training=context.training,
    )
    return {g.name: normalised(layer_scores(scorer, g, scoring, settings.join), settings.normalise) for g in chosen}


# --- what may be pruned -----------------------------------------------------------------------------------------------


def _eligible(groups: Groups, settings: Prune, context: RunContext) -> list[ChannelGroup]:
    """The groups to prune; every other gets its line in the ledger."""
    known = [g.name for g in (*groups.free, *groups.held)] + list(groups.wiring.values)
    for pattern in (*settings.protect, *settings.scopes):
        if not fnmatch.filter(known, pattern):
            raise KnobError(f"step 'prune': the pattern '{pattern}' names no layer or value{nearest(pattern, known)}")
    for group in groups.held:
        context.ledger.skipped("prune", group.name, _op_type(groups, group), why_held(group))
    chosen: list[ChannelGroup] = []
    taken: dict[Place, Mask] = {}
    for group in sorted(groups.free, key=lambda g: g.channels):  # where groups overlap, whole heads come first
        weights = {m.place: m.index >= 0 for m in group.members if m.weight}
        reason = None
        if any(_matches(group, pattern) for pattern in settings.protect):
            reason = "the user protects it"
        elif any(place in taken and (taken[place] & mask).any() for place, mask in weights.items()):
            reason = "its weights are pruned along another factor of the same axis (heads before the size of a head)"
        if reason is None:
            chosen.append(group)
            for place, mask in weights.items():
                taken[place] = taken.get(place, np.zeros_like(mask)) | mask
        else:
            context.ledger.declined("prune", group.name, _op_type(groups, group), reason)
    return [group for group in groups.free if group in chosen]


def why_held(group: ChannelGroup) -> str:
    """The reasons that hold a group back, the most frequent first."""
    reasons = sorted(group.blockers.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(reason for reason, _ in reasons) or "it has no weight to prune"


def _matches(group: ChannelGroup, pattern: str) -> bool:
    return fnmatch.fnmatchcase(group.name, pattern) or any(
        fnmatch.fnmatchcase(member.place.value, pattern) for member in group.members
    )


def _op_type(groups: Groups, group: ChannelGroup) -> str:
    producer = groups.wiring.values[group.root.value].producer()
    return "" if producer is None else producer.op_type


# --- the account ------------------------------------------------------------------------------------------------------


def _report(
    settings: Prune,
    scorer: ImportanceScorer,
    groups: Groups,
    chosen: Sequence[ChannelGroup],
    account: _Account,
    whole: Size,
    left: Size,
    context: RunContext,
) -> None:
    for group in chosen:
        before, after = account.before[group.name], account.left[group.name]
        op_type = _op_type(groups, group)
        held = {"held": dict(group.blockers)} if group.blockers else {}
        if after < before:
            context.ledger.applied(
                "prune", group.name, op_type, f"{before - after} of {before} channels were removed by {scorer.name}",
                before=before, after=after, members=len(group.members), **held,
            )  # fmt: skip
        else:
            context.ledger.skipped("prune", group.name, op_type, f"all of its {before} channels stay within the target")
    if not account.proofs:
        return
    worst = max(account.proofs, key=lambda proof: proof.error)
    source = "calibration data" if context.calibration is not None else "random data"
    context.ledger.note(
        "prune",
        f"the pruned model equals the masked one on {source}: largest difference {worst.error:.1e} of the output",
        error=worst.error, effect=worst.effect, samples=worst.samples, tolerance_held=True,
        macs=[whole.macs, left.macs], parameters=[whole.params, left.params], readers_refitted=account.refitted,
    )  # fmt: skip
    context.notes.append(
        f"pruning left {left.params / whole.params:.0%} of the parameters and {left.macs / max(whole.macs, 1):.0%} "
        f"of the multiply-accumulates, proven equal to masking to {worst.error:.0e}"
    )


def _proof_feeds(wiring: Wiring, context: RunContext) -> list[Feeds]:
    if context.calibration is not None:
        return [batch.feeds for batch in context.calibration.batches(2, limit=PROOF_SAMPLES)]
    return [random_feeds(wiring.model, context.seed)]


def random_feeds(model: ir.Model, seed: int) -> Feeds:
    """Standard normal numbers, and zeros and ones where integers are asked for; dynamic sizes are 2.

    Raises:
        ModelError: an input of unknown rank.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        if value.shape is None or value.dtype is None:
            raise ModelError(f"input '{value.name}' has no shape: give data, so that the removal can be proven")
        shape = [d if isinstance(d, int) and d > 0 else 2 for d in value.shape]
        kind = np.dtype(value.dtype.numpy())
        drawn = generator.standard_normal(shape) if kind.kind not in "iub" else generator.integers(0, 2, shape)
        feeds[str(value.name)] = drawn.astype(kind)
    return feeds
