"""Runs leave records, are not repeated, wait for what they need, and end when the time is over."""

import importlib
import sys

import pytest
from runs import Run, carried_out, interval, over_seeds

FUNCTIONS = """
import attrs

@attrs.frozen
class Outcome:
    value: float

def doubled(value, folder):
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    return Outcome(2 * value)

def failing(folder):
    raise ValueError("as it should")

def after_doubling(folder):
    return {"calls": len((folder / "calls").read_text())}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Functions that other processes can import."""
    (tmp_path / "functions_of_runs.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_of_runs", raising=False)
    return importlib.import_module("functions_of_runs")


def run(name, function, *arguments, after=()):
    return Run(name=name, function=function, arguments=arguments, after=after)


def test_a_run_whose_record_is_there_is_not_repeated(module, tmp_path):
    for _ in range(2):
        assert carried_out([run("a way/0", module.doubled, 1.5)], tmp_path) == {"a way/0": {"value": 3.0}}
    assert (tmp_path / "calls").read_text() == "x"


def test_other_arguments_are_another_run(module, tmp_path):
    carried_out([run("way", module.doubled, 1.0)], tmp_path)
    assert carried_out([run("way", module.doubled, 2.0)], tmp_path) == {"way": {"value": 4.0}}


def test_a_run_waits_for_what_it_needs_and_a_failure_stops_only_what_needs_it(module, tmp_path):
    runs = [
        run("last", module.after_doubling, after=("first",)),
        run("never", module.after_doubling, after=("broken",)),
        run("broken", module.failing),
        run("first", module.doubled, 1.0),
    ]
    assert carried_out(runs, tmp_path) == {"last": {"calls": 1}, "first": {"value": 2.0}}


def test_no_time_means_what_is_there_already(module, tmp_path):
    carried_out([run("done", module.doubled, 1.0)], tmp_path)
    found = carried_out([run("done", module.doubled, 1.0), run("not done", module.doubled, 3.0)], tmp_path, seconds=0)
    assert found == {"done": {"value": 2.0}}


def test_records_of_a_way_are_told_apart_by_seed():
    records = {"way/0": {"value": 1.0}, "way/2": {"value": 2.0}, "other/1": {"value": 3.0}}
    assert over_seeds(records, "way", (0, 1, 2)) == {0: {"value": 1.0}, 2: {"value": 2.0}}


def test_the_interval_is_students():
    assert interval([1.0]) == 0
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, rel=1e-3)
