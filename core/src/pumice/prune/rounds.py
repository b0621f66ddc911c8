"""Rounds of pruning: score, choose, cut, prove, recover; each on the model that the last one left.

The share that is gone after round t of n follows the schedule: all at once; in equal steps; or fast first and slowly at
the end, 1 - (1 - t/n)^3 of the way (Zhu and Gupta, 2017). It is a share of what there was before the first round, so
that what a round rounds up the next one makes up for. Where the step has a budget, every round is judged on calibration
data, and the last that kept it is the result; if the first already breaks it, the step is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice.errors import BudgetExceeded, DataError, ModelError
from pumice.measure.budget import JUDGED, Verdict, judge, rows
from pumice.model import clone
from pumice.prune import sensitivity
from pumice.prune.costs import latency, size
from pumice.prune.groups import ChannelGroup, Cuts, Groups, find_groups, union
from pumice.prune.proof import Feeds, Proof, prove
from pumice.prune.reading import Values, reader_of, spread
from pumice.prune.reconstruction import ROWS, read_by, reconstruct, with_statistics
from pumice.prune.scoring import ScoringContext, layer_scores, normalised
from pumice.prune.selection import Limits, Removed, Scores, cuts_of, reach, select
from pumice.prune.surgery import remove
from pumice.prune.wiring import Place, Wiring

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext
    from pumice.steps import Prune
    from pumice.strategy import ImportanceScorer

PROOF_SAMPLES = 4
COUNTED_BISECTIONS, MEASURED_BISECTIONS = 16, 6
COUNTED = {"score-per-mac": "macs", "score-per-param": "params"}
"""What `by` divides scores by, where it can be counted."""
LEAST_TIME = 1e-3
"""Share of the latency that half of a layer is worth at least: less is not measured."""


@attrs.frozen(eq=False)
class Outcome:
    """What rounds made of a model."""

    model: ir.Model
    proofs: tuple[Proof, ...] = ()
    left: Mapping[str, int] = attrs.field(factory=dict)
    """Channels of the groups that lost some."""
    refitted: int = 0
    stopped: Verdict | None = None
    """Why the last round was undone."""


@attrs.frozen(eq=False)
class Rounds:
    """Settings and a scorer, at work on the groups of these names."""

    settings: Prune
    scorer: ImportanceScorer
    names: frozenset[str]
    context: RunContext

    def run(self, groups: Groups) -> Outcome:
        original = groups.wiring.model
        done = Outcome(clone(original))
        for share in self.shares():
            found = groups if not done.proofs else find_groups(done.model)
            then = self.round(groups, found, share, done)
            verdict = self.verdict(original, then.model) if then is not done else None
            if verdict is not None and verdict.exceeded:
                if not done.proofs:
                    raise BudgetExceeded(f"{verdict}; prune less, recover, or raise max_drop and train afterwards")
                return attrs.evolve(done, stopped=verdict)
            done = then
        return done

    @property
    def multiple(self) -> int:
        """What counts are rounded up to."""
        return self.settings.multiple or self.context.runtime.channel_multiple

    @property
    def threads(self) -> int:
        """Of one inference, where latency is measured."""
        return self.context.threads or 1

    def shares(self) -> list[float]:
        """What should be gone after each round."""
        count = 1 if self.settings.schedule == "one-shot" else self.settings.rounds
        steps = np.arange(1, count + 1) / count
        gone = self.settings.ratio * (steps if self.settings.schedule != "cubic" else 1 - (1 - steps) ** 3)
        return [float(share) for share in gone]

    def verdict(self, original: ir.Model, pruned: ir.Model) -> Verdict | None:
        """What pruning has cost so far; None if nobody asks.

        Raises:
            DataError: there is a budget and there are no data to judge by.
        """
        if self.settings.max_drop >= 1.0:
            return None
        data, context = self.context.calibration, self.context
        if data is None:
            raise DataError("step 'prune' cannot hold max_drop without data to judge by: give them with --data (data=)")
        samples = rows(data, JUDGED)
        return judge(original, pruned, samples, context.metrics, context.runtime, self.settings.max_drop)

    def round(self, whole: Groups, groups: Groups, share: float, done: Outcome) -> Outcome:
        wiring, context = groups.wiring, self.context
        chosen = [g for g in groups.free if g.name in self.names]
        removed = self.selection(whole, wiring, chosen, share)
        cuts = cuts_of(chosen, removed)
        if not cuts:
            return done
        pruned = remove(wiring, cuts)
        proof = prove(wiring, cuts, pruned, proof_feeds(wiring, context), context.runtime)
        pruned, refitted = self.recovered(wiring, cuts, pruned)
        left = {**done.left, **{g.name: g.channels - len(removed[g.name]) for g in chosen}}
        return Outcome(pruned, (*done.proofs, proof), left, done.refitted + refitted)

    def recovered(self, wiring: Wiring, cuts: Cuts, pruned: ir.Model) -> tuple[ir.Model, int]:
        """The pruned model after the recovery that the step asks for, and how many readers were refitted."""
        data, runtime, refitted = self.context.calibration, self.context.runtime, 0
        if self.settings.recover == "least-squares":
            pruned, refitted = reconstruct(wiring, cuts, pruned, reader_of(data, runtime, ROWS))
        if self.settings.statistics:
            pruned = with_statistics(pruned, reader_of(data, runtime))
        return pruned, refitted

    # --- which channels -----------------------------------------------------------------------------------------------

    def selection(self, whole: Groups, wiring: Wiring, chosen: Sequence[ChannelGroup], share: float) -> Removed:
        settings = self.settings
        scores = self.scores(wiring, chosen)
        limits = Limits(floor=settings.floor, least=settings.least, multiple=self.multiple)
        before = {g.name: g.channels for g in (*chosen, *whole.free)}

        def choose(part: float) -> Removed:
            return select(chosen, scores, part, limits, settings.scope, settings.scopes, before)

        if settings.of == "channels" or not chosen:
            return choose(share)
        cost = self.cost(whole.wiring, wiring)
        steps = MEASURED_BISECTIONS if settings.of == "latency" else COUNTED_BISECTIONS
        return reach(choose, lambda removed: cost(cuts_of(chosen, removed)), 1 - share, steps)

    def cost(self, whole: Wiring, wiring: Wiring) -> Callable[[Cuts], float]:
        """What is left of the cost that the target counts, as a share of the whole model's, after a removal."""
        of, context = self.settings.of, self.context
        if of == "latency":
            feeds = proof_feeds(wiring, context)
            return lambda cuts: latency(whole, remove(wiring, cuts), feeds, context.runtime, self.threads)
        before = max(getattr(size(whole, {}), of), 1)
        return lambda cuts: getattr(size(wiring, cuts), of) / before

    def scores(self, wiring: Wiring, chosen: Sequence[ChannelGroup]) -> dict[str, Scores]:
        settings, context = self.settings, self.context
        scoring = ScoringContext(
            wiring=wiring,
            runtime=context.runtime,
            seed=context.seed,
            calibration=context.calibration,
            training=context.training,
        )
        by = self.scorer.normalise if settings.normalise == "scorer" else settings.normalise
        scale = "none" if by == "outputs" else by
        found = {}
        with context.progress.task("score channels", len(chosen)) as advance:
            for group in chosen:
                found[group.name] = normalised(layer_scores(self.scorer, group, scoring, settings.join), scale)
                advance()
        if by == "outputs":
            found = self.in_output_noise(wiring, chosen, found)
        return {g.name: found[g.name] / self.price(wiring, g) for g in chosen}

    def in_output_noise(
        self, wiring: Wiring, chosen: Sequence[ChannelGroup], scores: Mapping[str, Scores]
    ) -> dict[str, Scores]:
        """Scores scaled by what the outputs feel; recovery is judged as if each reader were the first refitted."""
        context = self.context
        feeds = proof_feeds(wiring, context, sensitivity.SAMPLES)
        refits = self.settings.recover == "least-squares"
        every = union(group.cuts(range(group.channels)) for group in chosen)
        whole = reader_of(context.calibration, context.runtime)(wiring.model, read_by(wiring, every)) if refits else {}

        def recovered(cuts: Cuts, pruned: ir.Model) -> ir.Model:
            def read(model: ir.Model, places: Iterable[Place]) -> Values:
                gone = {} if model is wiring.model else cuts
                return {place: whole[place][:, ~gone[place]] if place in gone else whole[place] for place in places}

            return reconstruct(wiring, cuts, pruned, read)[0] if refits else pruned

        return sensitivity.in_output_noise(wiring, chosen, scores, recovered, feeds, context.runtime)

    def price(self, wiring: Wiring, group: ChannelGroup) -> float:
        """What a channel of the group costs, in what scores are divided by."""
        by, context = self.settings.by, self.context
        if by == "score" or self.settings.scope == "local":
            return 1.0
        if by == "score-per-time":
            half, feeds = group.channels // 2, proof_feeds(wiring, context)
            pruned = remove(wiring, group.cuts(range(half)))
            left = latency(wiring, pruned, feeds, context.runtime, self.threads)
            return max(1.0 - left, LEAST_TIME) / half
        whole, left = (getattr(size(wiring, cuts), COUNTED[by]) for cuts in ({}, group.cuts([0])))
        return max(float(whole - left), 1.0)


def proof_feeds(wiring: Wiring, context: RunContext, samples: int = PROOF_SAMPLES) -> list[Feeds]:
    """Calibration data, or random data where there are none."""
    if context.calibration is not None:
        return [batch.feeds for batch in spread(context.calibration, samples).batches(2)]
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
