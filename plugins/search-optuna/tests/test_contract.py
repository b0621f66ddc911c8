from pumice.testing import SearcherContract
from pumice.testing.searcher import small_space, tried
from pumice_search_optuna import Nsga2, Tpe


class TestTpe(SearcherContract):
    strategy = Tpe


class TestNsga2(SearcherContract):
    strategy = Nsga2


def test_tpe_learns_where_the_limits_lie():
    space, trials = small_space(), []
    for number in range(1, 41):
        trials.append(tried(number, Tpe().propose(space, trials)))
    late = [trial.violation <= 0 for trial in trials[25:]]
    early = [trial.violation <= 0 for trial in trials[:10]]
    assert sum(late) / len(late) > sum(early) / len(early)
    assert min(t.cost for t in trials[10:] if t.violation <= 0) <= min(t.cost for t in trials[:10] if t.violation <= 0)


def test_a_trial_that_failed_or_still_runs_is_no_obstacle():
    space, trials = small_space(), []
    for number in range(1, 16):
        trial = tried(number, Tpe().propose(space, trials))
        state = {0: "failed", 1: "running"}.get(number % 4, "measured")
        figures = trial.figures if state == "measured" else None
        trials.append(type(trial)(**{**_fields(trial), "state": state, "figures": figures}))
    assert Tpe().propose(space, trials) is not None
    assert Nsga2().propose(space, trials) is not None


def _fields(trial):
    return {name: getattr(trial, name) for name in type(trial).__slots__ if not name.startswith("__")}
