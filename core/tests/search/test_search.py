"""The search on a small real problem: a verdict on unseen samples, resumed, in processes, and honest when it fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

import attrs
import numpy as np
import pytest

from pumice.errors import BudgetExceeded, PumiceError
from pumice.model import save
from pumice.pipeline import compress
from pumice.progress import Silent
from pumice.registry import registry
from pumice.search import application, guide, laboratory, ladder, overdue, pace, passes, search
from pumice.search.laboratory import Evidence, Laboratory, Lost
from pumice.search.machine import measuring
from pumice.search.openings import Opening, singles
from pumice.search.pace import Pace
from pumice.search.space import Proposal
from pumice.search.study import Study
from pumice.search.workers import Workers
from pumice.steps import Auto, Quantize
from pumice.strategy import Searcher
from pumice.testing.models import random_feeds, tiny_cnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LIMITS = {"searcher": "random", "trials": 4, "budget": 0.0, "max_drop": 0.1}
PATIENCE = 100.0
"""Seconds for what takes a few, on a machine that does much else."""


class FeedsThatStay(dict):
    def __reduce__(self):
        raise TypeError("not to be pickled")


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A model on disk, and samples labelled by the model itself."""
    from pumice.measure import pick_runtime

    folder = tmp_path_factory.mktemp("problem")
    save(tiny_cnn(), folder / "model.onnx")
    (feeds,) = random_feeds(1, size=1600)
    (scores,) = pick_runtime("reference").open(tiny_cnn()).run(feeds).values()
    np.savez(folder / "data.npz", **feeds, labels=scores.reshape(1600, -1).argmax(axis=1))
    return folder / "model.onnx", folder / "data.npz"


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Times decide nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "LATENCY_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def found(problem):
    return search(*problem, LIMITS)


def test_the_winner_keeps_the_limits_on_samples_that_the_search_did_not_see(found):
    winner = found.verdict.winner
    assert winner is not None
    assert not winner.broken
    assert winner.figures.samples >= 50
    assert found.recipe is not None
    assert "did not see" in found.summary()


def test_it_begins_with_what_compress_would_do(found):
    assert [step["use"] for step in found.trials[0].recipe["step"]] == ["quantize"]
    assert found.trials[0].origin.startswith("opening")


def test_the_winning_recipe_gives_the_same_bytes_and_account_again(problem, tmp_path, monkeypatch):
    found = search(*problem, {**LIMITS, "trials": 1, "study": str(tmp_path)})
    again = compress(*problem, found.recipe, measure=False)
    monkeypatch.setattr(Quantize, "run", None)  # nothing runs again
    told = found.account()
    assert bytes_of(told.model, tmp_path) == bytes_of(again.model, tmp_path)
    assert bytes_of(told.model, tmp_path) == (tmp_path / "models" / found.verdict.winner.trial.model).read_bytes()
    assert [(e.step, e.node, e.reason) for e in told.ledger] == [(e.step, e.node, e.reason) for e in again.ledger]


def bytes_of(model, folder):
    save(model, folder / "written.onnx")
    return (folder / "written.onnx").read_bytes()


def test_the_account_is_of_samples_that_chose_nothing(found):
    told = found.account()
    assert told.measurements.after.evaluation.samples == found.verdict.winner.figures.samples
    assert application.HELD_OUT in told.notes
    assert told.seconds["search"] == pytest.approx(found.seconds, abs=1e-3)


def test_what_leaves_no_winner_has_no_account(problem):
    found = search(*problem, {**LIMITS, "size": 500.0, "trials": 1})
    with pytest.raises(BudgetExceeded, match="no recipe meets the limits"):
        found.account()


def test_what_a_trial_waits_for_others_is_counted_apart(problem, tmp_path):
    limits = {**LIMITS, "trials": 1, "study": str(tmp_path)}
    with ThreadPoolExecutor(1) as pool:
        with measuring():
            searched = pool.submit(search, *problem, limits)
            time.sleep(12.0)
        found = searched.result()
    (trial,) = found.trials
    assert trial.waited > 1.0
    assert trial.seconds < found.seconds - trial.waited
    assert "s for others to leave the cores" in found.summary()


def test_the_parts_of_the_data_do_not_overlap(problem):
    (feeds,) = random_feeds(1, size=2000)
    evidence = Evidence.of({**feeds, "labels": np.zeros(2000, np.int64)}, problem[0], None)

    def samples(part):
        return {next(iter(sample.feeds.values())).tobytes() for sample in part.samples()}

    searched, held_out = samples(evidence.search), samples(evidence.held_out)
    assert not searched & held_out
    for used in (*evidence.calibration.values(), evidence.training):
        assert not (searched | held_out) & samples(used)


def test_limits_that_nothing_can_keep_are_an_answer(problem):
    found = search(*problem, {**LIMITS, "size": 500.0, "trials": 2})
    assert found.recipe is None
    assert "no recipe meets the limits; the nearest" in found.verdict.sentence()
    assert "500x is asked" in found.verdict.sentence()


def test_a_search_that_was_stopped_goes_on(problem, tmp_path):
    first = search(*problem, {**LIMITS, "trials": 2, "study": str(tmp_path)})
    second = search(*problem, {**LIMITS, "trials": 3, "study": str(tmp_path)})
    assert [t.recipe for t in second.trials[:2]] == [t.recipe for t in first.trials]
    assert [t.figures for t in second.trials[:2]] == [t.figures for t in first.trials]
    assert len(second.trials) == 3
    assert second.earlier == 2
    assert second.trials[2].finished > first.trials[1].finished
    spent = second.trials[2].seconds + second.trials[2].waited
    assert second.overhead == pytest.approx(1.0 - spent / second.seconds)


def test_two_workers_search_as_one_does(problem):
    found = search(*problem, {**LIMITS, "trials": 3, "workers": 2})
    assert sorted(t.number for t in found.trials) == [1, 2, 3]
    assert found.verdict.winner is not None


def test_data_in_memory_cannot_travel_to_workers(problem):
    samples = [FeedsThatStay(feed) for feed in random_feeds(300, size=1)]
    with pytest.raises(PumiceError, match="cannot travel to other workers"):
        search(problem[0], samples, {**LIMITS, "workers": 2})


def test_an_executor_that_there_is_not_is_refused(problem):
    with pytest.raises(PumiceError, match="no executor 'cluster': write processes, or dask://HOST:PORT"):
        search(*problem, {**LIMITS, "executor": "cluster"})


def test_a_search_without_an_end_is_refused(problem):
    with pytest.raises(PumiceError, match="nothing ends the search"):
        search(*problem, {"budget": 0.0})


def test_a_plugin_that_breaks_costs_its_trial_and_no_more(problem, monkeypatch):
    def broken(self, recipe, progress):
        raise ZeroDivisionError("a plugin's defect")

    monkeypatch.setattr(Laboratory, "compressed", broken)
    found = search(*problem, {**LIMITS, "trials": 2})
    assert {t.state for t in found.trials} == {"failed"}
    assert "ZeroDivisionError: a plugin's defect" in found.trials[0].reason
    assert found.verdict.sentence().startswith("no recipe meets the limits: none could be measured; trial 1 (quantize")
    assert found.verdict.sentence().endswith("ZeroDivisionError: a plugin's defect")
    assert "front" not in found.summary()


def test_a_searcher_that_breaks_ends_the_search_and_costs_nothing_that_was_found(problem, monkeypatch):
    def broken(self, space, history):
        raise ModuleNotFoundError("No module named 'optuna'")

    monkeypatch.setattr(guide, "singles", lambda *given: singles(*given)[:1])
    monkeypatch.setattr(guide.Ladder, "of", lambda *_: None)
    monkeypatch.setattr(registry().get(Searcher, "random"), "propose", broken)
    found = search(*problem, LIMITS)
    assert found.verdict.winner.trial.number == len(found.trials) == 1
    assert "searcher 'random' broke and proposed no more: ModuleNotFoundError" in found.summary()


def slow(self, model, context):
    with context.progress.task("learn", 1000) as advance:
        for _ in range(1000):
            time.sleep(0.01)
            advance()


def test_a_trial_that_is_over_its_time_is_ended_and_says_so(problem, monkeypatch):
    monkeypatch.setattr(Quantize, "run", slow)
    monkeypatch.setattr(application._Loop, "seconds", 0.05)
    monkeypatch.setattr(application, "OVERRUN", 0.0)
    found = search(*problem, {**LIMITS, "trials": 1})
    assert [(trial.state, trial.figures) for trial in found.trials] == [("late", None)]
    assert found.trials[0].reason.startswith("it took more than the 0.05 s it had")
    assert "1 late" in found.summary()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["trials"][0]["cost"] is None


def silent(self, model, context):
    end = time.perf_counter() + 60.0
    while time.perf_counter() < end:
        pass


def test_a_search_ends_in_time_with_an_answer_though_no_trial_does(problem, monkeypatch):
    monkeypatch.setattr(Quantize, "run", silent)
    monkeypatch.setattr(overdue, "GRACE", 0.1)
    monkeypatch.setattr(application, "OVERRUN", 0.0)
    monkeypatch.setattr(guide.Ladder, "of", lambda *_: None)
    began = time.perf_counter()
    found = search(*problem, {"searcher": "random", "budget": 0.2, "max_drop": 0.1})
    assert time.perf_counter() - began < 40.0
    assert {trial.state for trial in found.trials} == {"late"}
    told = found.verdict.sentence()
    assert told.startswith("no recipe could be measured in this time, so give more of it (--budget); trial 1 (quantize")


def test_the_first_trial_may_be_over_the_budget_and_no_other(tmp_path):
    asked = []

    class Pool:
        def submit(self, trial, seconds):
            asked.append(seconds)
            future = Future()
            future.set_result(attrs.evolve(trial, state="measured", seconds=0.1))
            return future

    class Guide:
        def opening(self, trials, seconds, tried):
            recipe = {"step": [{"use": "quantize", "samples": 1 + len(trials)}]}
            return Opening(proposal=Proposal(values={}, recipe=recipe), reason="another")

    began = time.perf_counter()
    pace = Pace(began=began, deadline=began + 20.0, end=began + 20.0, samples=1, first=1)
    application._Loop(Auto(trials=2), Study.open(tmp_path, {}), Pool(), Guide(), pace, Silent()).run()
    assert asked[0] > 20.0 > asked[1]


class Stuck:
    """An executor, and a guide, whose trial never ends."""

    def submit(self, run, trial, seconds):
        return Future()

    def opening(self, trials, seconds, tried):
        recipe = {"step": [{"use": "quantize"}]}
        return Opening(proposal=Proposal(values={}, recipe=recipe), reason="it never ends")


def test_a_worker_that_does_not_come_back_is_given_up(tmp_path):
    over, ended = time.perf_counter() - 60.0, []
    pace = Pace(began=over, deadline=over, end=over, samples=1, first=1)
    pool = Workers(make=Stuck, run=None, executor=Stuck(), end=lambda: ended.append("pool"))
    loop = application._Loop(Auto(trials=1), Study.open(tmp_path, {}), pool, Stuck(), pace, Silent())
    assert [(trial.state, trial.reason) for trial in loop.run()] == [("late", "it did not end when its time was over")]
    assert ended == ["pool"]


def test_where_the_defaults_lose_too_much_a_milder_recipe_wins(problem, monkeypatch):
    whole = Laboratory._lost

    def harsh(self, session, data, limit, progress):
        """As if every hundredth of noise changed a tenth of the answers."""
        lost = 10.0 * self._noise(session)
        return attrs.evolve(whole(self, session, data, limit, progress), drop=lost, low=lost, high=lost)

    monkeypatch.setattr(Laboratory, "_lost", harsh)
    found = search(*problem, {"searcher": "random", "trials": 6, "budget": 0.0, "max_drop": 2e-4})
    usual, *others = found.trials
    milder = next(trial for trial in others if trial.state == "measured")
    assert usual.drop > 2e-4 > milder.drop
    assert 0.0 < milder.noise <= milder.recipe["step"][0]["noise"]
    assert found.verdict.winner is not None


def test_what_was_too_late_is_tried_again_when_there_is_more_time(problem, tmp_path):
    limits = {**LIMITS, "study": str(tmp_path)}
    (trial,) = search(*problem, {**limits, "trials": 1}).trials
    Study(tmp_path).add(attrs.evolve(trial, state="late", figures=None))
    first, *others = search(*problem, {**limits, "trials": 3}).trials
    assert first.state == "late"
    assert ("measured", first.values) in [(trial.state, trial.values) for trial in others]


def test_a_longer_course_divides_the_data_as_the_one_before_did(problem, tmp_path, monkeypatch):
    for samples, trials in ((64, 2), (512, 3)):
        monkeypatch.setattr(pace, "affordable", lambda *_, samples=samples: samples)
        found = search(*problem, {**LIMITS, "trials": trials, "study": str(tmp_path)})
    assert found.laboratory.samples == 64
    assert found.made is not None


def test_a_search_that_is_killed_loses_nothing_but_the_trial_in_flight(problem, tmp_path):
    asked = {**LIMITS, "trials": 50, "study": str(tmp_path)}
    script = f"from pumice.search import search; search({str(problem[0])!r}, {str(problem[1])!r}, {asked!r})"
    begun = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
    study = Study(tmp_path)
    while not list(tmp_path.glob("models/*.onnx")) or len(study.trials()) < 2:
        assert begun.poll() is None
        time.sleep(0.1)
    begun.kill()
    assert begun.wait() == -signal.SIGKILL
    kept = study.trials()
    found = search(*problem, {**asked, "trials": len(kept) + 1})
    assert len(kept) >= 2
    assert list(found.trials[: len(kept)]) == kept
    assert found.trials[-1].state in ("measured", "stopped")


def test_a_script_whose_workers_cannot_begin_is_told_so(problem):
    asked = {**LIMITS, "workers": 2}
    script = f"from pumice.search import search; search({str(problem[0])!r}, {str(problem[1])!r}, {asked!r})"
    command = [sys.executable, "-W", "ignore", "-"]
    done = subprocess.run(command, input=script, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PumiceError: worker processes end as they begin: search from a file, in a script below" in done.stderr


def lives(group):
    """Whether any process of a group does."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interruption_ends_the_workers_at_once_and_the_search_goes_on_later(problem, tmp_path):
    asked = {**LIMITS, "trials": 50, "study": str(tmp_path / "study"), "workers": 2}
    script = tmp_path / "search.py"
    script.write_text(
        "import signal\n"
        "from pumice.search import search\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background would ignore it\n"
        f"if __name__ == '__main__': search({str(problem[0])!r}, {str(problem[1])!r}, {asked!r})"
    )
    study = Study(tmp_path / "study")
    with subprocess.Popen([sys.executable, "-W", "ignore", script], start_new_session=True) as begun:
        try:
            while not list(tmp_path.glob("study/models/*.onnx")) or len(study.trials()) < 2:
                assert begun.poll() is None
                time.sleep(0.1)
            os.killpg(begun.pid, signal.SIGINT)  # as a terminal does
            assert begun.wait(timeout=PATIENCE) != 0
            end = time.monotonic() + PATIENCE
            while lives(begun.pid):
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(begun.pid, signal.SIGKILL)
    kept = study.trials()
    found = search(*problem, {**asked, "workers": 1, "trials": len(kept) + 1})
    assert list(found.trials[: len(kept)]) == kept
    assert len(found.trials) == len(kept) + 1


def test_two_searches_with_one_seed_take_the_same_course_to_the_same_winner(problem, monkeypatch):
    monkeypatch.setattr(guide, "singles", lambda *given: singles(*given)[:2])
    monkeypatch.setattr(ladder, "CLOSE", 1.0)  # a ladder of few rungs
    monkeypatch.setattr(passes, "REPAIR_STEPS", 20)
    limits = {**LIMITS, "trials": 11, "goal": "size", "searcher": "tpe"}
    first, second = (search(*problem, limits) for _ in range(2))
    assert [trial.recipe for trial in first.trials] == [trial.recipe for trial in second.trials]
    assert "tpe" in {trial.origin for trial in first.trials}
    assert first.recipe == second.recipe


def test_noise_of_the_timings_does_not_choose_the_winner(problem, monkeypatch):
    timed = Laboratory._timed

    def noisy(self, path, lost, data):
        figures, noise = timed(self, path, lost, data), rng.uniform(0.985, 1.015)
        return attrs.evolve(figures, speedup=noise, latency=1.0 / noise)

    winners = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(Laboratory, "_timed", noisy)
        winners.append(search(*problem, LIMITS).recipe)
    assert winners[0] == winners[1] == winners[2]


def test_what_is_plainly_too_inaccurate_is_stopped_before_it_is_timed(problem, monkeypatch):
    plainly = Lost(drop=0.5, low=0.4, high=0.6, samples=128)
    monkeypatch.setattr(Laboratory, "_lost", lambda *_: plainly)
    monkeypatch.setattr(Laboratory, "_timed", None)
    found = search(*problem, {**LIMITS, "trials": 1})
    assert [(trial.state, trial.figures) for trial in found.trials] == [("stopped", None)]
    assert "it loses 0.5000, 0.4000 at least" in found.trials[0].reason


@pytest.mark.parametrize("asked", [{"workers": 3}, {"executor": "dask://nowhere:1"}])
def test_a_recipe_that_asks_for_workers_is_refused(problem, asked):
    with pytest.raises(PumiceError, match="one recipe at a time, where it runs: leave out workers and executor"):
        compress(*problem, {"step": [{"use": "auto", **LIMITS, **asked}]}, measure=False)


def test_as_a_step_of_a_recipe_it_applies_the_winner(problem):
    recipe = {"step": [{"use": "auto", **LIMITS}]}
    result = compress(*problem, recipe, measure=False)
    assert any("the winner is trial" in note for note in result.notes)
    assert result.ledger.of("auto", "applied")
    assert result.measurements.compression > 1.0


def test_every_limit_is_a_flag_that_takes_its_unit():
    knobs = Auto.knobs()
    typed = {"max_drop": "1%", "latency": "5ms", "size": "10x", "budget": "30min", "memory": "1.5GB"}
    values = {name: knobs[name].parse(text) for name, text in typed.items()}
    assert attrs.asdict(Auto(**values)) | {
        "max_drop": 0.01,
        "latency": 5.0,
        "size": 10.0,
        "budget": 30.0,
        "memory": 1500.0,
    } == attrs.asdict(Auto(**values))


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("latency", "5 apples", "alone or with ms or s behind it"),
        ("max_drop", "1 point", "alone or with % behind it"),
        ("budget", "soon", "alone or with min or h or s behind it"),
    ],
)
def test_a_unit_that_there_is_not_names_those_that_there_are(name, typed, said):
    knob = Auto.knobs()[name]
    assert said in knob.domain.check(knob.parse(typed))


def test_a_verdict_on_few_samples_does_not_claim_that_they_were_unseen(problem):
    with np.load(problem[1]) as samples:
        few = {name: array[:300] for name, array in samples.items()}
    found = search(problem[0], few, {**LIMITS, "trials": 1})
    assert "samples that the search saw too" in found.verdict.sentence()
