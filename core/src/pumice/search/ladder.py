"""The ladder: channels are pruned, what is left is repaired and quantized; how many may go is found by bisection.

A ratio is *kept* if a recipe there keeps the accuracy with a standard error to spare. Each course has its own repair:
first the readers' refit alone, then training as well, and at last more of it. A course begins at the smallest ratio
that the one before it did not keep, and halves in between the largest kept and the smallest not kept. What else matters
is settled side by side, where trials differ in nothing else: the importance scorer where the first course ends, and the
rate of learning where the first training begins, from one rate to its neighbours as long as they lose less. What a
training has left is given to other quantizers as well, since that takes little beside it.

A rung is a function of the trials so far. With several workers, trials that are still running divide the interval as
well, and the next halves its widest part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pumice.search.openings import ORIGIN, Opening, quantizer_of
from pumice.search.passes import rounded_passes, wanted_passes
from pumice.search.space import Space
from pumice.search.trial import Trial
from pumice.steps import STEPS, Step
from pumice.strategy import ImportanceScorer

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.steps import Auto

START, MOST, CLOSE, ROUGH = 0.3, 0.9, 0.06, 0.15
"""The first ratio, the largest, and the gap between two at which a course ends; one that trains only to tell where more
training should begin ends earlier."""
SHARES, SHARES_AT_ONCE = (0.12, 0.25), (0.12, 0.5)
"""Shares of the budget that one training may take, course by course: with one worker, and where others go on."""
RATES, FIRST_RATE, SCHEDULE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), 1e-3, "one-cycle"
"""Of learning. A rate that begins at its height throws away what the refit has left; this schedule rises to it."""
OTHERS, PATIENCE = 3, 0.06
"""Other quantizers that take their turn, and the share of the budget that one of them may have taken alone."""

SCORER = "prune.scorer"

Knobs = dict[str, Any]


@attrs.frozen(kw_only=True)
class Course:
    """One way to repair what is pruned."""

    pipeline: tuple[str, ...]
    passes: float
    """Over the data, that training the whole model has time for; 0 where nothing trains."""
    wanted: int
    """Passes that suffice."""
    close: float = CLOSE
    """The gap between a ratio that was kept and one that was not at which it ends."""

    @property
    def name(self) -> str:
        return " > ".join(self.pipeline)

    def epochs(self, ratio: float) -> int:
        return max(1, epochs_for(self.passes, self.wanted, ratio)) if self.passes else 0

    def knobs(self, ratio: float) -> Knobs:
        """What the trials of this course at a ratio have in common."""
        found: Knobs = {"prune.recover": "least-squares", "prune.ratio": ratio}
        for step in _repairs(self.pipeline):
            found |= {f"{step.name}.epochs": self.epochs(ratio), f"{step.name}.schedule": SCHEDULE}
        return found

    def holds(self, trial: Trial) -> bool:
        """Whether a trial is one of this course; a knob that nobody may choose has no value there."""
        knobs, known = self.knobs(trial.values["prune.ratio"]), trial.values
        return trial.pipeline == self.name and all(known.get(name, value) == value for name, value in knobs.items())

    def rate(self, rate: float) -> Knobs:
        return {f"{step.name}.lr": rate for step in _repairs(self.pipeline)}


@attrs.frozen(kw_only=True)
class Climb:
    """How far a course has come."""

    kept: Mapping[float, bool]
    """By ratio: whether any quantizer, scorer or rate kept the accuracy there."""
    running: frozenset[float]
    """Ratios that are being tried for the first time."""
    before: float
    """The largest ratio that the course before it kept."""
    start: float
    close: float

    @property
    def low(self) -> float:
        """The largest ratio kept."""
        return max((ratio for ratio, kept in self.kept.items() if kept), default=self.before)

    @property
    def high(self) -> float:
        """The smallest ratio above it that was not kept."""
        return min((ratio for ratio, kept in self.kept.items() if not kept and ratio > self.low), default=MOST)

    @property
    def next(self) -> float | None:
        """The ratio to try next; None at the end."""
        if not self.kept and not self.running:
            return self.start if self.start < MOST else None
        between = [ratio for ratio in self.running if self.low < ratio < self.high]
        parts = itertools.pairwise(sorted([self.low, *between, self.high]))
        low, high = max(parts, key=lambda part: part[1] - part[0], default=(0.0, 0.0))
        return round((low + high) / 2, 2) if high - low > self.close else None

    @property
    def ends(self) -> list[float]:
        """The ratios that the climb is between, as far as they were tried."""
        return [ratio for ratio in (self.high, self.low) if ratio in self.kept]


@attrs.frozen(kw_only=True)
class Seen:
    """What the trials so far tell a ladder."""

    mine: Sequence[Trial]
    """Its own."""
    quantizers: Sequence[Knobs]
    """Those that kept the accuracy alone, the best first."""
    max_drop: float

    @property
    def broken(self) -> set[str]:
        """Pipelines that could not be had."""
        judged = {t.pipeline for t in self.mine if t.state in ("measured", "stopped", "running")}
        return {t.pipeline for t in self.mine} - judged

    @property
    def usual(self) -> Knobs:
        """The quantizer, the scorer and the rate that were best."""
        quantizer = next(iter(self.quantizers), {})
        return {**quantizer, **lost_least(self.mine, _tells_scorer), **lost_least(self.mine, _tells_rate)}

    def climb(self, course: Course, before: float, start: float) -> Climb:
        kept: dict[float, bool] = {}
        running = set()
        for trial in self.mine:
            ratio = trial.values["prune.ratio"]
            if course.holds(trial):
                if trial.state == "running":
                    running.add(ratio)
                else:
                    kept[ratio] = kept.get(ratio, False) or self._keeps(trial)
        new = frozenset(running - kept.keys())
        return Climb(kept=kept, running=new, before=before, start=start, close=course.close)

    def _keeps(self, trial: Trial) -> bool:
        """What failed is taken as kept: as a rule the ratio was too small to take anything away."""
        return trial.spares(self.max_drop) or trial.state == "failed"


@attrs.frozen(kw_only=True)
class Wish:
    """Something worth trying."""

    opening: Opening
    seconds: float
    """What it trains for, at most; 0 where nothing trains that was not trained before."""


@attrs.frozen(kw_only=True)
class Ladder:
    """Pruning by as much as the accuracy allows."""

    space: Space
    courses: tuple[Course, ...]
    start: float
    max_drop: float
    size: float
    """Times smaller that is asked for; 0 is any."""
    patience: float
    """Seconds that a quantizer may have taken alone to take its turn."""
    pass_seconds: float
    """What training the original on all samples once takes."""
    reason: str

    @classmethod
    def of(cls, space: Space, model: ir.Model, limits: Auto, samples: int, pass_seconds: float) -> Ladder | None:
        """The ladder for a model, None where nothing can be pruned.

        Args:
            space: what can be tried.
            model: the original.
            limits: what is asked for.
            samples: how many there are to train on.
            pass_seconds: what training the original on all of them once takes; infinite where it cannot be trained.
        """
        from pumice.prune import find_groups

        courses = _courses(space, limits, samples, pass_seconds)
        groups = find_groups(model).free if courses else []
        if not groups:
            return None
        return cls(
            space=space,
            courses=courses,
            start=_first_ratio(limits),
            max_drop=limits.max_drop,
            size=limits.size,
            patience=PATIENCE * limits.budget * 60 or math.inf,
            pass_seconds=pass_seconds,
            reason=f"{len(groups)} groups of channels can be pruned",
        )

    def rung(self, trials: Sequence[Trial], seconds: float = math.inf) -> Opening | None:
        """What to try next; None at the end, or where what comes next trains for longer than so many seconds."""
        mine = [trial for trial in trials if trial.origin.startswith(ORIGIN) and "prune.ratio" in trial.values]
        tried = [trial.values for trial in mine]
        quantizers = _quantizers(trials, self.max_drop, self.patience)
        seen = Seen(mine=mine, quantizers=quantizers, max_drop=self.max_drop)
        for wish in self._wishes(seen, self._least(trials)):
            if wish.seconds <= seconds and wish.opening.proposal.values not in tried:
                return wish.opening
        return None

    def _least(self, trials: Sequence[Trial]) -> float:
        """The ratio that the size asks for beyond what a quantizer reaches alone with the accuracy kept."""
        alone = (t.figures for t in trials if t.figures and t.pipeline == "quantize")
        reached = max((found.compression for found in alone if found.drop <= self.max_drop), default=1.0)
        return ratio_for(self.size, reached) if reached > 1.0 else 0.0

    def _wishes(self, seen: Seen, least: float) -> Iterator[Wish]:
        """What is worth trying up to the next ratio, in turn, whether or not it was tried."""
        before, start, settled = least, max(self.start, least), False
        for course in self.courses:
            if course.name in seen.broken:
                continue
            climb = seen.climb(course, before, start)
            if course.passes and not settled and start < MOST:
                yield from (self._wish(course, start, seen, course.rate(rate)) for rate in _rates(seen.mine))
                settled = True
            if course.passes:
                yield from self._turns(course, climb, seen)
            if climb.next is not None:
                yield self._wish(course, climb.next, seen)
                return
            if not course.passes:
                yield from self._scorers(course, climb, seen)
                yield from self._turns(course, climb, seen)
            before, start = climb.low, climb.high

    def _scorers(self, course: Course, climb: Climb, seen: Seen) -> Iterator[Wish]:
        """Every scorer at one ratio: the first that was not kept, or where some were compared already.

        What stands for others is left out, for these are all compared, and it would try them all again.
        """
        compared = most_alike(seen.mine, _tells_scorer)
        at = [compared[0].values["prune.ratio"]] if len(compared) > 1 else climb.ends[:1]
        choosers = self.space.choosers(ImportanceScorer.kind)
        for ratio, scorer in itertools.product(at, self.space.alternatives("prune")):
            if scorer[SCORER] not in choosers:
                yield self._wish(course, ratio, seen, scorer)

    def _turns(self, course: Course, climb: Climb, seen: Seen) -> Iterator[Wish]:
        """Other quantizers at the ends of a climb."""
        for ratio, quantizer in itertools.product(climb.ends, seen.quantizers[: 1 + OTHERS]):
            yield attrs.evolve(self._wish(course, ratio, seen, quantizer), seconds=0.0)

    def _wish(self, course: Course, ratio: float, seen: Seen, changed: Mapping[str, Any] | None = None) -> Wish:
        knobs = {**course.rate(FIRST_RATE), **seen.usual, **(changed or {}), **course.knobs(ratio)}
        proposal = self.space.default(course.pipeline, knobs)
        opening = Opening(proposal=proposal, reason=f"{self.reason}; a ratio of {ratio:.2f}")
        return Wish(opening=opening, seconds=self._expected(course, ratio) * self._pace(seen) if course.passes else 0.0)

    def _expected(self, course: Course, ratio: float) -> float:
        """Seconds of a training, by the step that was timed first."""
        return course.epochs(ratio) * (1.0 - ratio) * self.pass_seconds

    def _pace(self, seen: Seen) -> float:
        """What trainings took of the seconds expected, at most: what found its beginning kept took less."""
        ratios = (
            trial.seconds / self._expected(course, trial.values["prune.ratio"])
            for course in self.courses
            for trial in seen.mine
            if course.passes and trial.state == "measured" and course.holds(trial)
        )
        return min(1.0, max(ratios, default=1.0))


def lost_least(trials: Sequence[Trial], tells: Callable[[str], bool]) -> Knobs:
    """What some knobs, by their names, were in the trial that lost least of the most that differ in nothing else."""
    most = most_alike(trials, tells)
    best = min(most, key=lambda trial: (trial.figures is None, trial.figures and trial.figures.drop), default=None)
    return {} if best is None else {name: value for name, value in best.values.items() if tells(name)}


def most_alike(trials: Sequence[Trial], tells: Callable[[str], bool]) -> list[Trial]:
    """The most trials that were tried to the end and differ in nothing but the knobs that are told by their names."""
    alike: dict[frozenset[tuple[str, Any]], list[Trial]] = {}
    for trial in trials:
        if trial.state in ("measured", "stopped") and any(map(tells, trial.values)):
            rest = frozenset((name, value) for name, value in trial.values.items() if not tells(name))
            alike.setdefault(rest, []).append(trial)
    return max(alike.values(), key=len, default=[])


def _tells_scorer(name: str) -> bool:
    """Of the step's own knobs only the scorer, and all of the scorer's."""
    return name.startswith("prune.") and (name == SCORER or name.count(".") > 1)


def _tells_rate(name: str) -> bool:
    """Of a step itself, not of a quantizer that trains."""
    return name.endswith(".lr") and name.count(".") == 1


def _rates(mine: Sequence[Trial]) -> list[float]:
    """Rates to try side by side: the first, and the neighbours of the best so far."""
    found = next(iter(lost_least(mine, _tells_rate).values()), FIRST_RATE)
    best = RATES.index(min(RATES, key=lambda rate: abs(rate - found)))  # an earlier version's is none of them
    return [FIRST_RATE, *RATES[best + 1 : best + 2], *RATES[max(0, best - 1) : best]]


def _courses(space: Space, limits: Auto, samples: int, pass_seconds: float) -> tuple[Course, ...]:
    """The best pipeline that trains nothing, then the best that does, once for every share that has time for a pass."""
    wanted = wanted_passes(samples)
    chains = sorted((steps for steps in space.pipelines if steps[0] == "prune"), key=_merit, reverse=True)
    plain = next((steps for steps in chains if not _repairs(steps)), None)
    repaired = next((steps for steps in chains if _repairs(steps)), None)
    found = [Course(pipeline=plain, passes=0.0, wanted=wanted)] if plain else []
    seconds = [share * limits.budget * 60 for share in shares(limits)] if repaired else []
    passes = [min(wanted, each / pass_seconds) if limits.budget else float(wanted) for each in seconds]
    enough = sorted({count for count in passes if epochs_for(count, wanted, _first_ratio(limits))})
    for count in enough:
        close = CLOSE if count == enough[-1] else ROUGH
        found.append(Course(pipeline=repaired or (), passes=count, wanted=wanted, close=close))
    return tuple(found)


def _merit(steps: tuple[str, ...]) -> tuple[int, int]:
    """Pruned, repaired once and made of integers is best; among repairs that which makes use of most (a teacher)."""
    repairs = _repairs(steps)
    whole = 2 * (steps[-1] == "quantize") + (len(repairs) == 1) - max(0, len(repairs) - 1)
    return whole, max((len(step.needs) for step in repairs), default=0)


def _repairs(steps: tuple[str, ...]) -> list[type[Step]]:
    return [STEPS[name] for name in steps if not STEPS[name].compresses]


def _quantizers(trials: Sequence[Trial], max_drop: float, seconds: float) -> list[Knobs]:
    """The knobs of the quantizations that kept the accuracy alone, what costs least first; else of the most accurate.

    Limits on size and time are not asked here: pruning is what reaches them. What took longer than so many seconds
    alone is left out, unless there is nothing else.
    """
    alone = [(t, t.figures.drop) for t in trials if t.figures and t.pipeline == "quantize"]
    ranked = sorted(
        alone, key=lambda one: (one[0].seconds > seconds, max(0.0, one[1] - max_drop), one[0].cost, one[0].number)
    )
    best: dict[str, Knobs] = {}
    for trial, drop in ranked:
        if not best or (drop <= max_drop and trial.seconds <= seconds):
            knobs = quantizer_of(trial)
            best.setdefault(str(knobs.get("quantize.quantizer")), knobs)
    return list(best.values())


def epochs_for(passes: float, wanted: int, ratio: float) -> int:
    """Passes of a training where this share of the channels is gone: work goes at least with what is left."""
    return min(wanted, rounded_passes(passes / (1.0 - ratio)))


def most_epochs(limits: Auto, samples: int, pass_seconds: float) -> int:
    """Passes of a training that a search may propose for a network that is pruned as the ladder begins."""
    wanted = wanted_passes(samples)
    return (
        epochs_for(max(shares(limits)) * limits.budget * 60 / pass_seconds, wanted, START) if limits.budget else wanted
    )


def shares(limits: Auto) -> tuple[float, ...]:
    """Shares of the budget that trainings may take, course by course."""
    return SHARES if limits.workers == 1 else SHARES_AT_ONCE


def _first_ratio(limits: Auto) -> float:
    """What the size asks for beyond the four times of 8-bit weights."""
    return max(START, ratio_for(limits.size, 4.0))


def ratio_for(size: float, reached: float) -> float:
    """The ratio of channels that is to go where a size is asked for and some of it is reached without.

    Weights go with the square of what is left.
    """
    return min(MOST, round(1.0 - (reached / size) ** 0.5, 2)) if size > reached else 0.0
