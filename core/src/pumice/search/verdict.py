"""The verdict: the best candidates of a search, measured again on data that it never saw.

A search that tries many recipes finds some that do well on its data by chance. So the candidates that come out best are
scored on held-out samples; the p values of McNemar's test against the original are corrected for their number (Holm,
1979); and the winner is the best of those that keep every limit there. If none does, that is the answer, with the
nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from pumice.search.trial import Figures, Trial, broken_limits, cost, front, violation

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


@attrs.frozen(kw_only=True)
class Verdict:
    """What the search found."""

    winner: Verified | None
    nearest: Verified | None
    """What comes nearest to the limits if nothing keeps them."""
    verified: tuple[Verified, ...]
    unseen: bool
    """Whether they were measured on data that the search did not see; few data are not divided."""

    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.winner is not None:
            figures = self.winner.figures
            seen = "that the search did not see" if self.unseen else "that the search saw too"
            return (
                f"the winner is trial {self.winner.trial.number}: {figures.speedup:.2f}x faster, "
                f"{figures.compression:.2f}x smaller, loses {figures.drop:.4f} "
                f"[{figures.low:.4f}, {figures.high:.4f}] on {figures.samples} samples {seen} "
                f"(p = {self.winner.p:.2g}, corrected for {len(self.verified)} candidates)"
            )
        if self.nearest is None:
            return "no recipe meets the limits: none could be measured"
        return (
            f"no recipe meets the limits; the nearest, trial {self.nearest.trial.number}, "
            f"{' and '.join(self.nearest.broken)}"
        )


def judge(trials: Sequence[Trial], laboratory: Laboratory) -> Verdict:
    """Measure the best candidates again and choose."""
    verified: list[Verified] = []
    ps: list[float] = []
    for trial in candidates(trials):
        figures, p = laboratory.verify(trial)
        limits = laboratory.limits
        ps.append(p)
        verified.append(
            Verified(
                trial=trial,
                figures=figures,
                p=p,
                broken=tuple(broken_limits(limits, figures)),
                rank=(violation(limits, figures), cost(limits, figures), trial.number),
            )
        )
    corrected = [attrs.evolve(one, p=p) for one, p in zip(verified, holm(ps), strict=True)]
    ranked = sorted(corrected, key=lambda one: one.rank)
    best = ranked[0] if ranked else None
    kept = best is not None and not best.broken
    return Verdict(
        winner=best if kept else None,
        nearest=None if kept else best,
        verified=tuple(ranked),
        unseen=laboratory.evidence.held_out is not laboratory.evidence.search,
    )


def candidates(trials: Sequence[Trial]) -> list[Trial]:
    """The best by rank, and the most accurate of the front, each model once."""
    measured = sorted((t for t in trials if t.state == "measured"), key=lambda t: t.rank)
    safe = front(measured)[:1]
    chosen: dict[str, Trial] = {}
    for trial in [*measured[: CANDIDATES - 1], *safe, *measured[CANDIDATES - 1 :]]:
        if len(chosen) < CANDIDATES:
            chosen.setdefault(trial.model, trial)
    return list(chosen.values())


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, step down."""
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    corrected, least = [0.0] * len(ps), 0.0
    for place, at in enumerate(order):
        least = max(least, min(1.0, (len(ps) - place) * ps[at]))
        corrected[at] = least
    return corrected
