"""The `prune` step: which groups may lose channels, a scorer that is settled, the rounds, and the account of it all.

Every group has its line in the ledger: what it lost, or why it lost nothing. A scorer that stands for others tries them
first; each trial has its line too.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice.errors import KnobError, nearest
from pumice.prune.costs import Size, size
from pumice.prune.groups import ChannelGroup, Groups, Mask, find_groups
from pumice.prune.rounds import Outcome, Rounds
from pumice.prune.trials import Trials
from pumice.prune.wiring import Place, Wiring

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.pipeline import RunContext
    from pumice.steps import Prune
    from pumice.strategy import ImportanceScorer


def prune(settings: Prune, scorer: ImportanceScorer, model: ir.Model, context: RunContext) -> ir.Model:
    """The pruned model; `model` is left unchanged.

    Raises:
        KnobError: a pattern that names nothing.
        ModelError: the proof of a removal failed.
        BudgetExceeded: the first round already lost more than `max_drop`.
    """
    groups = find_groups(model)
    chosen = _eligible(groups, settings, context)
    names = frozenset(group.name for group in chosen)

    def tried(one: ImportanceScorer, data: Dataset) -> ir.Model:
        step = attrs.evolve(settings, max_drop=1.0, schedule="one-shot", recover="least-squares", statistics=True)
        return Rounds(step, one, names, attrs.evolve(context, calibration=data)).run(groups).model

    trials = Trials(model, context, tried)
    settled = scorer.settled(trials)
    rounds = Rounds(settings, settled, names, context)
    outcome = rounds.run(groups)
    _tell_trials(trials, settled, context)
    _report(settled, groups, chosen, outcome, rounds.multiple, context)
    return outcome.model


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


def _tell_trials(trials: Trials, settled: ImportanceScorer, context: RunContext) -> None:
    """A line for every scorer tried, and a sentence about the choice."""
    for trial in trials.table:
        settings = ", ".join(f"{key} {value}" for key, value in trial.scorer.settings().items())
        label = f"scorer {trial.scorer.name}" + (f" ({settings})" if settings else "")
        add = context.ledger.applied if trial.scorer == settled else context.ledger.skipped
        add("prune", label, "", f"tried: {trial}", loss=trial.loss, noise=trial.noise)
    if trials.table:
        best = next(trial for trial in trials.table if trial.scorer == settled)
        context.notes.append(f"of {len(trials.table)} scorers tried, {settled.name} was chosen: {best}")


def _report(
    scorer: ImportanceScorer,
    groups: Groups,
    chosen: Sequence[ChannelGroup],
    outcome: Outcome,
    multiple: int,
    context: RunContext,
) -> None:
    for group in chosen:
        before = group.channels
        after = outcome.left.get(group.name, before)
        op_type = _op_type(groups, group)
        held = {"held": dict(group.blockers)} if group.blockers else {}
        if after < before:
            context.ledger.applied(
                "prune", group.name, op_type, f"{before - after} of {before} channels were removed by {scorer.name}",
                before=before, after=after, members=len(group.members), **held,
            )  # fmt: skip
        else:
            reason = (
                f"all of its {before} channels stay: the target, floors and a multiple of {multiple} ask for no fewer"
            )
            context.ledger.skipped("prune", group.name, op_type, reason)
    if outcome.proofs:
        _report_proof(outcome, size(groups.wiring, {}), size(Wiring.of(outcome.model), {}), context)
    if outcome.stopped is not None:
        context.notes.append(f"pruning stopped after {len(outcome.proofs)} rounds: in the next, {outcome.stopped}")


def _report_proof(outcome: Outcome, whole: Size, left: Size, context: RunContext) -> None:
    worst = max(outcome.proofs, key=lambda proof: proof.error)
    source = "calibration data" if context.calibration is not None else "random data"
    context.ledger.note(
        "prune",
        f"the pruned model equals the masked one on {source}: largest difference {worst.error:.1e} of the output",
        error=worst.error, effect=worst.effect, samples=worst.samples, tolerance_held=True,
        macs=[whole.macs, left.macs], parameters=[whole.params, left.params], readers_refitted=outcome.refitted,
    )  # fmt: skip
    context.notes.append(
        f"pruning left {left.params / whole.params:.0%} of the parameters and {left.macs / max(whole.macs, 1):.0%} "
        f"of the multiply-accumulates, proven equal to masking to {worst.error:.0e}"
    )
