"""Greedy search: coordinate descent from the best recipe so far.

From the best trial, every knob is changed alone: a choice to each of its others, a number by a share of its range up
and down. When no neighbour is better the share is halved, until it is too small to matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pumice import Choice, Flag, Float, Int, Searcher, hookimpl, knob

if TYPE_CHECKING:
    from pumice.knobs import Domain
    from pumice.search import Proposal, Space, Trial

SMALLEST = 0.02


@attrs.frozen(kw_only=True)
class Greedy(Searcher):
    """The best recipe so far, one knob changed at a time."""

    name = "greedy"
    step: float = knob(0.25, Float(0.01, 0.5), help="how far a number moves at once, as a share of its range")

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        measured = [trial for trial in history if trial.state == "measured"]
        best = min(measured, key=lambda trial: trial.rank, default=None)
        start, domains = _followed(space, {} if best is None else best.values)
        tried = {_key(trial.values) for trial in history}
        share = self.step
        while share >= SMALLEST:
            for values in [start.values, *_neighbours(start.values, domains, share)]:
                proposal, _ = _followed(space, values)
                if _key(proposal.values) not in tried:
                    return proposal
            share /= 2
        return None


def _followed(space: Space, values: Mapping[str, Any]) -> tuple[Proposal, dict[str, Domain]]:
    """The walk along given values, its start or middle elsewhere, and what could be chosen on the way."""
    domains: dict[str, Domain] = {}

    def choose(name: str, domain: Domain) -> Any:
        domains[name] = domain
        return values.get(name, _first(domain))

    return space.walk(choose), domains


def _first(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.options[0]
    return False if isinstance(domain, Flag) else _at(domain, 0.5)


def _neighbours(values: Mapping[str, Any], domains: Mapping[str, Domain], share: float) -> Iterator[dict[str, Any]]:
    """The values with one of them changed."""
    for name, value in values.items():
        domain = domains[name]
        if isinstance(domain, Choice | Flag):
            others = list(domain.options) if isinstance(domain, Choice) else [False, True]
        else:
            place = _place(domain, value)
            others = [_at(domain, min(max(place + way, 0.0), 1.0)) for way in (share, -share)]
        yield from ({**values, name: other} for other in others if other != value)


def _place(domain: Domain, value: float) -> float:
    """Where a number lies in its range, from 0 to 1."""
    low, high, value = (_scale(domain, end) for end in (domain.low, domain.high, value))  # type: ignore[union-attr]
    return (value - low) / (high - low) if high > low else 0.0


def _at(domain: Domain, place: float) -> Any:
    low, high = (_scale(domain, end) for end in (domain.low, domain.high))  # type: ignore[union-attr]
    value = low + place * (high - low)
    value = math.exp(value) if _logarithmic(domain) else value
    value = min(max(value, domain.low), domain.high)  # type: ignore[union-attr]
    return round(value) if isinstance(domain, Int) else value


def _scale(domain: Domain, value: float) -> float:
    return math.log(value) if _logarithmic(domain) else float(value)


def _logarithmic(domain: Domain) -> bool:
    return bool(domain.log and domain.low > 0)  # type: ignore[union-attr]


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


@hookimpl
def pumice_searchers() -> Iterator[type[Searcher]]:
    yield Greedy
