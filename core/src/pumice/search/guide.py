"""The guide: what a search tries by its own knowledge, before it asks a searcher.

Every quantizer at its defaults (`openings`), milder recipes where too much is lost (`Retreat`), and pruning by as much
as the accuracy allows (`Ladder`) take turns. As long as nothing surely keeps the accuracy the retreat has two turns of
three and nothing is pruned: what is lost without it is lost with it. Then the retreat has one turn of three when all
quantizers were tried. Where the ladder was plainly too high, it goes on only then. What a sequence of steps begins with
is measured by itself as soon as it is there (`parts`), out of turn. All are functions of the trials so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from pumice.errors import PumiceError
from pumice.knobs import Int
from pumice.search.ladder import Ladder, most_epochs
from pumice.search.openings import PART, SAMPLES, Opening, parts, singles
from pumice.search.passes import seconds_of_a_pass
from pumice.search.retreat import Retreat
from pumice.search.space import Proposal, Space
from pumice.search.trial import Trial, tolerable
from pumice.steps import STEPS, Auto, Train
from pumice.strategy import Need

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.search.laboratory import Evidence, Laboratory
    from pumice.search.pace import Pace

Turn = Callable[[], Opening | None]


@attrs.frozen(kw_only=True)
class Guide:
    """What is known to be worth trying."""

    space: Space
    waiting: deque[Opening]
    retreat: Retreat
    ladder: Ladder | None
    max_drop: float

    @classmethod
    def of(cls, laboratory: Laboratory, pace: Pace) -> Guide:
        """The guide for the model and the data of a laboratory.

        Raises:
            PumiceError: nothing that is installed can compress the model.
        """
        model, evidence, limits = laboratory.original, laboratory.evidence, laboratory.limits
        pass_seconds, untrained = _training_speed(model, evidence)
        space = _space(model, evidence, limits, pace, pass_seconds, untrained)
        if not space.pipelines:
            reasons = "; ".join(f"{one.kind} '{one.name}': {one.reason}" for one in space.left_out)
            raise PumiceError(f"nothing that is installed can compress this model: {reasons}")
        return cls(
            space=space,
            waiting=deque(singles(space, {SAMPLES: pace.first})),
            retreat=Retreat(space=space, max_drop=limits.max_drop),
            ladder=Ladder.of(space, model, limits, evidence.training.count(), pass_seconds),
            max_drop=limits.max_drop,
        )

    def opening(self, trials: Sequence[Trial], seconds: float, tried: Callable[[Proposal], bool]) -> Opening | None:
        """The next that is new, None where it is for a searcher to propose.

        Args:
            trials: those so far, running ones included.
            seconds: what a trial that begins now may take.
            tried: whether a recipe was tried before.
        """
        while self.waiting and tried(self.waiting[0].proposal):
            self.waiting.popleft()
        for part in parts(self.space, trials):
            if not tried(part.proposal):
                return part
        for turn in self._turns([trial for trial in trials if not trial.origin.startswith(PART)], seconds):
            found = turn()
            if found is not None and not tried(found.proposal):
                return found
        return None

    def _turns(self, trials: Sequence[Trial], seconds: float) -> Iterator[Turn]:
        def retreat() -> Opening | None:
            return self.retreat.rung(trials)

        def ladder() -> Opening | None:
            return None if self.ladder is None else self.ladder.rung(trials, seconds)

        def single() -> Opening | None:
            return self.waiting.popleft() if self.waiting else None

        count, noise = len(trials), tolerable(trials, self.max_drop)
        if not any(trial.sure(self.max_drop, noise) for trial in trials):
            yield from (retreat, single, ladder) if count % 3 else (single, retreat, ladder)
            return
        upwards = count % 2 and not _hopeless(trials)
        others = (ladder, single) if upwards or not self.waiting else (single, ladder)
        yield from (*others, retreat) if count % 3 or self.waiting else (retreat, *others)


def _hopeless(trials: Sequence[Trial]) -> bool:
    """Whether what was pruned last was plainly too inaccurate: smaller ratios can wait."""
    return next((t.state == "stopped" for t in reversed(trials) if "prune.ratio" in t.values), False)


def _training_speed(model: ir.Model, evidence: Evidence) -> tuple[float, str]:
    """Seconds of training on all samples once; infinite, and why, where the model cannot be trained."""
    try:
        return seconds_of_a_pass(model, evidence.training), ""
    except PumiceError as error:
        return float("inf"), str(error)


def _space(model: ir.Model, evidence: Evidence, limits: Auto, pace: Pace, pass_seconds: float, untrained: str) -> Space:
    """What can be tried; trainings with as many passes as the budget has room for."""
    has = {Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER, Need.TRAINING}
    trainings = {name: step for name, step in STEPS.items() if issubclass(step, Train)}
    epochs = most_epochs(limits, evidence.training.count(), pass_seconds)
    refuse, narrowed = {}, {}
    for name, step in trainings.items():
        domain = step.knobs()["epochs"].searched(step)
        assert isinstance(domain, Int)
        if untrained or not epochs:
            seconds = limits.budget * 60
            told = f"one pass over the data takes {pass_seconds:.0f} s, too long for a budget of {seconds:.0f} s"
            refuse[name] = untrained or told
        narrowed[name, "epochs"] = attrs.evolve(domain, high=max(domain.low, min(domain.high, epochs)))
    if evidence.training.labelled:
        has.add(Need.LABELS)
    else:
        refuse["train"] = "it needs labels"
    fixed = {
        ("quantize", "max_drop"): limits.max_drop,
        ("quantize", "samples"): pace.samples,
        ("quantize", "noise"): 0.0,
    }
    return Space.of(model, frozenset(has), fixed, refuse, narrowed, limits.goal)
