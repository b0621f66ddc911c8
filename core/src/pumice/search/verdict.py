"""The verdict: the best candidates of a search, measured again on data that it never saw.

A search that tries many recipes finds some that do well on its data by chance. So the candidates that come out best are
scored on held-out samples; the p values of McNemar's test against the original are corrected for their number (Holm,
1979); and the winner is the best of those that keep every limit there. If none does, that is the answer, with the
nearest.

A drop is an estimate, and a search climbs to where it just keeps its limit; half of what it finds there would break it
on other data. So half of the candidates keep the limit surely (`Trial.sure`): with a standard error to spare or, where
samples are too few to tell, with no more noise than all recipes together say is tolerable. If any of them does so on
the held-out samples too, the winner is one of these.

What is close in cost is settled by what no clock has a part in: of all that keep the limits and come within
`RESOLUTION` of the least cost, the smallest file wins, then the recipe that was tried first. So a timing that falls
out a little otherwise leads to the same winner.

The verdict has a time. It begins with the best that is certain, the best of all, what won in a course before this one,
and the first trial, which is what `compress` makes by itself, so that the winner is not less than these on unseen
samples either. What cannot be measured before its end is left, but for one: where none of the others keeps the limits,
the surest. Without an end, those that kept them in the search follow until one does here. In what time is left the
front is bisected between the best that is sure and what is better and is not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from pumice.search.trial import RESOLUTION, Figures, Trial, broken_limits, cost, front, tolerable, violation

if TYPE_CHECKING:
    from pumice.search.laboratory import Laboratory

CANDIDATES = 5


@attrs.frozen(kw_only=True)
class Verified:
    """A candidate on held-out data."""

    trial: Trial
    figures: Figures
    p: float
    """Of McNemar's test against the original, corrected for the number of candidates."""
    broken: tuple[str, ...]
    """The limits it does not keep there."""
    rank: tuple[float, float, int]
    """Violation of the limits, cost, and number of the trial."""
    sure: bool = False
    """Whether it keeps the accuracy surely."""

    def told(self, winner: Verified | None) -> str:
        """What it came to there, and why it is or is not the winner."""
        found = f"trial {self.trial.number} ({self.trial.shape}): {self.figures.gains}, loses {self.figures.drop:.4f}"
        if self.broken:
            return f"{found}: it {' and '.join(self.broken)}"
        if winner is None or self.trial.number == winner.trial.number:
            return f"{found}: it wins"
        if winner.sure and not self.sure:
            return f"{found}: it keeps the limits, but is less sure of the accuracy than the winner"
        if self.rank[1] <= winner.rank[1] + RESOLUTION:
            return f"{found}: no better than the winner as far as can be told, and its file is no smaller"
        return f"{found}: it gains less than the winner"


@attrs.frozen(kw_only=True)
class Verdict:
    """What the search found."""

    winner: Verified | None
    nearest: Verified | None
    """What comes nearest to the limits if nothing keeps them."""
    verified: tuple[Verified, ...]
    unseen: bool
    """Whether they were measured on data that the search did not see; few data are not divided."""
    trouble: str = ""
    """That nothing could be measured, and why: what the first trial says."""

    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.winner is not None:
            figures, tried = self.winner.figures, len(self.verified)
            seen = "that the search did not see" if self.unseen else "that the search saw too"
            return (
                f"the winner is trial {self.winner.trial.number}: {figures.gains}, loses {figures.drop:.4f} "
                f"[{figures.low:.4f}, {figures.high:.4f}] on {figures.samples} samples {seen} "
                f"(p = {self.winner.p:.2g}, corrected for {tried} candidate{'s' * (tried != 1)})"
            )
        if self.nearest is None:
            return self.trouble
        return (
            f"no recipe meets the limits; the nearest, trial {self.nearest.trial.number}, "
            f"{' and '.join(self.nearest.broken)}"
        )

    def reasons(self) -> list[str]:
        """A line for every candidate: what it came to, and why it won or did not."""
        return [one.told(self.winner) for one in self.verified]


def judge(trials: Sequence[Trial], laboratory: Laboratory, until: float = math.inf) -> Verdict:
    """Measure the best candidates again and choose.

    Args:
        trials: all of the search.
        laboratory: where they were measured.
        until: when to be done (`time.perf_counter`).
    """
    began, most = time.perf_counter(), laboratory.limits.max_drop
    verified = _all_verified(candidates(trials, most), laboratory, until)
    ranked = _ranked(verified, trials, most)
    while (middle := between(ranked, trials, most)) is not None:
        if (now := time.perf_counter()) + (now - began) / len(verified) > until:
            break
        verified.append(_verified(middle, laboratory))
        ranked = _ranked(verified, trials, most)
    kept = [one for one in ranked if not one.broken]
    winner = best_of([one for one in kept if one.sure] or kept)
    return Verdict(
        winner=winner,
        nearest=ranked[0] if ranked and winner is None else None,
        verified=tuple(ranked),
        unseen=laboratory.evidence.held_out is not laboratory.evidence.search,
        trouble="" if verified else _trouble(trials),
    )


def _all_verified(ordered: Sequence[Trial], laboratory: Laboratory, until: float) -> list[Verified]:
    """As many of the candidates as are needed and there is time for; where none of them holds, at last the surest."""
    verified: list[Verified] = []
    last = 0.0
    for trial in ordered:
        began, holds = time.perf_counter(), any(not one.broken for one in verified)
        if len(verified) >= CANDIDATES and (holds or not trial.feasible):
            return verified
        if verified and began + last > until:
            left = [other for other in ordered[len(verified) :] if other.feasible and other.figures]
            surest = min(left, key=lambda one: one.figures.cautious_drop if one.figures else math.inf, default=None)
            return verified if holds or surest is None else [*verified, _verified(surest, laboratory)]
        verified.append(_verified(trial, laboratory))
        last = time.perf_counter() - began
    return verified


def _ranked(verified: Sequence[Verified], trials: Sequence[Trial], most: float) -> list[Verified]:
    """By rank, with p values that are corrected, and whether they are sure."""
    noise = tolerable([*trials, *(attrs.evolve(one.trial, drop=one.figures.drop) for one in verified)], most)
    sure = [one.trial.sure(most, noise, one.figures) for one in verified]
    told = zip(verified, holm([one.p for one in verified]), sure, strict=True)
    return sorted((attrs.evolve(one, p=p, sure=kept) for one, p, kept in told), key=lambda one: one.rank)


def between(told: Sequence[Verified], trials: Sequence[Trial], most: float) -> Trial | None:
    """The middle of what spares a standard error, between the best that is sure and the next that is not."""
    least = min((one.trial.cost for one in told if one.sure and not one.broken), default=-math.inf)
    better = max((one.trial.cost for one in told if one.trial.cost < least), default=-math.inf)
    spare = [t for t in front(trials) if t.feasible and t.spares(most) and better < t.cost < least - RESOLUTION]
    left = [t for t in spare if t.number not in {one.trial.number for one in told}]
    return left[len(left) // 2] if left else None


def best_of(kept: Sequence[Verified]) -> Verified | None:
    """The winner among candidates that keep every limit."""
    least = min((one.rank[1] for one in kept), default=0.0)
    equals = [one for one in kept if one.rank[1] <= least + RESOLUTION]
    return min(equals, key=lambda one: (one.figures.file_bytes, one.trial.number), default=None)


def _trouble(trials: Sequence[Trial]) -> str:
    told = "no recipe meets the limits: none could be measured"
    if any(one.state == "late" for one in trials):
        told = "no recipe could be measured in this time, so give more of it (--budget)"
    return told + next((f"; trial {one.number} ({one.shape}): {one.reason}" for one in trials if one.reason), "")


def _verified(trial: Trial, laboratory: Laboratory) -> Verified:
    figures, p = laboratory.verify(trial)
    limits = laboratory.limits
    broken = tuple(broken_limits(limits, figures))
    rank = violation(limits, figures), cost(limits, figures), trial.number
    return Verified(trial=trial, figures=figures, p=p, broken=broken, rank=rank)


def candidates(trials: Sequence[Trial], max_drop: float) -> list[Trial]:
    """Each model once: the best that keep the limits and are certain of it, in turn with the best of all.

    What won before and the first trial of all follow the best of both, and among the first `CANDIDATES` is the most
    accurate of the front.
    """
    measured = sorted((t for t in trials if t.state == "measured"), key=lambda t: t.rank)
    noise = tolerable(measured, max_drop)
    certain = [t for t in measured if t.feasible and t.sure(max_drop, noise)]
    usual = [t for t in measured if t.won or t.number == 1]
    in_turn = [t for pair in itertools.zip_longest(certain, measured) for t in pair if t is not None]
    first = list({t.model: t for t in [*in_turn[:2], *usual, *in_turn]}.values())[: CANDIDATES - 1]
    return list({t.model: t for t in [*first, *front(measured)[:1], *in_turn]}.values())


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, step down."""
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    corrected, least = [0.0] * len(ps), 0.0
    for place, at in enumerate(order):
        least = max(least, min(1.0, (len(ps) - place) * ps[at]))
        corrected[at] = least
    return corrected
