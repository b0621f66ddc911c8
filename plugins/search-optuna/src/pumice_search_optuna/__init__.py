"""Optuna's samplers as searchers.

`tpe`: tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), all knobs together, conditional ones in
groups; limits are constraints. `nsga2`: a population over the front of accuracy, speed and size (Deb et al., 2002).

A proposal is a function of the trials so far: they are told to a new study in memory, whose sampler is asked once. What
is kept between proposals is the search's own, so there is no second record that could differ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from pumice import Choice, Flag, Int, Searcher, hookimpl, knob

if TYPE_CHECKING:
    import optuna

    from pumice.knobs import Domain
    from pumice.search import Proposal, Space, Trial

WORST = 1e3
"""Objective of what failed: worse than any figure, and a number."""


@attrs.frozen(kw_only=True)
class Tpe(Searcher):
    """Recipes near those that were good (tree-structured Parzen estimators)."""

    name = "tpe"
    startup: int = knob(10, Int(1, 10_000), help="trials at random before it trusts what it has seen")
    seed: int = knob(0, Int(0, 1_000_000), help="which of the random courses")

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        from optuna.samplers import TPESampler

        with _stable():
            sampler = TPESampler(
                n_startup_trials=self.startup,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=_seed(self.seed, history),
            )
            return _asked(space, history, sampler, objectives=1)


@attrs.frozen(kw_only=True)
class Nsga2(Searcher):
    """A population of recipes over the front of accuracy, speed and size."""

    name = "nsga2"
    population: int = knob(20, Int(2, 10_000), help="recipes of a generation")
    seed: int = knob(0, Int(0, 1_000_000), help="which of the random courses")

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        from optuna.samplers import NSGAIISampler

        with _stable():
            seed = _seed(self.seed, history)
            sampler = NSGAIISampler(population_size=self.population, seed=seed)
            return _asked(space, history, sampler, objectives=3)


@contextmanager
def _stable() -> Iterator[None]:
    """Optuna warns that options of its samplers may change; the version is pinned by our tests instead."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _asked(space: Space, history: Sequence[Trial], sampler: Any, objectives: int) -> Proposal:
    """What the sampler proposes after the trials, walking the space."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
    domains = _domains(space, history)
    for trial in history:
        _tell(study, trial, domains, objectives)
    asked = study.ask()
    return space.walk(lambda name, domain: _suggested(asked, name, domain))


def _tell(study: optuna.Study, trial: Trial, domains: dict[str, Domain], objectives: int) -> None:
    from optuna.trial import TrialState, create_trial

    values = {n: value for n, value in trial.values.items() if n in domains and domains[n].check(value) is None}
    if not values:
        return
    running = trial.state == "running"
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING if running else TrialState.COMPLETE,
            params={name: _label(domains[name], value) for name, value in values.items()},
            distributions={name: _distribution(domains[name]) for name in values},
            values=None if running else _objectives(trial, objectives),
            constraints={"violation": min(trial.violation, WORST)},
        )
    )


def _objectives(trial: Trial, count: int) -> list[float]:
    """What is to be made small: the cost alone, or drop, time and size."""
    figures = trial.figures
    if figures is None:
        return [WORST] * count
    if count == 1:
        return [trial.cost]
    return [figures.drop, -math.log(figures.speedup), -math.log(figures.compression)]


def _domains(space: Space, history: Sequence[Trial]) -> dict[str, Domain]:
    """The domain of every name that the trials chose for, as the space has it now."""
    found: dict[str, Domain] = {}
    for trial in history:

        def choose(name: str, domain: Domain, values: Any = trial.values) -> Any:
            found[name] = domain
            return values.get(name, _first(domain))

        space.walk(choose)
    return found


def _first(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.options[0]
    return False if isinstance(domain, Flag) else domain.low  # type: ignore[union-attr]


def _options(domain: Domain) -> list[Any] | None:
    if isinstance(domain, Choice):
        return list(domain.options)
    return [False, True] if isinstance(domain, Flag) else None


def _label(domain: Domain, value: Any) -> Any:
    return value if isinstance(domain, Flag) or _options(domain) is None else str(value)


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    options = _options(domain)
    if options is not None:
        return CategoricalDistribution([_label(domain, option) for option in options])
    low, high = domain.low, domain.high  # type: ignore[union-attr]
    log = bool(domain.log and low > 0)  # type: ignore[union-attr]
    if isinstance(domain, Int):
        return IntDistribution(domain.low, domain.high, log=log)
    return FloatDistribution(low, high, log=log)


def _suggested(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    options = _options(domain)
    if options is not None:
        value = trial.suggest_categorical(name, [_label(domain, option) for option in options])
        return next(option for option in options if _label(domain, option) == value)
    of = _distribution(domain)
    suggest = trial.suggest_int if isinstance(domain, Int) else trial.suggest_float
    return suggest(name, of.low, of.high, log=of.log)


def _seed(seed: int, history: Sequence[Trial]) -> int:
    """A sampler is made anew for every proposal: its own course goes on with the number of trials."""
    return seed * 1_000_003 + len(history)


@hookimpl
def pumice_searchers() -> Iterator[type[Searcher]]:
    yield Tpe
    yield Nsga2
