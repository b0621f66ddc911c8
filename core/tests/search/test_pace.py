"""What a budget has room for."""

import math

import pytest

from pumice.search import pace
from pumice.search.pace import Pace, affordable
from pumice.steps import Auto

ALL = 512


class Part:
    def __init__(self, count):
        self.count = lambda: count


class Laboratory:
    """A laboratory whose original takes so many seconds for a sample."""

    def __init__(self, minutes, held_out=200):
        self.limits = Auto(budget=minutes, trials=1)
        self.evidence = self
        self.held_out, self.calibration = Part(held_out), {(ALL, False): Part(ALL)}


def paced(monkeypatch, minutes, inference, **data):
    monkeypatch.setattr(pace, "seconds_of_an_inference", lambda _: inference)
    return Pace.of(Laboratory(minutes, **data), 0.0)


def test_a_small_network_has_all_the_samples_that_compress_takes(monkeypatch):
    found = paced(monkeypatch, 10.0, 1e-4)
    assert (found.samples, found.first) == (ALL, ALL)


def test_a_large_network_has_fewer_and_the_first_recipe_all_of_them_while_there_is_time(monkeypatch):
    found = paced(monkeypatch, 20.0, 0.02)
    assert 32 <= found.samples < 64
    assert paced(monkeypatch, 20.0, 0.01).first == ALL
    assert paced(monkeypatch, 2.0, 0.1).first == paced(monkeypatch, 2.0, 0.1).samples == 32


@pytest.mark.parametrize("seconds", [1.0, 3.0, 10.0, 100.0])
def test_two_timings_that_differ_little_mostly_agree(seconds):
    counts = {affordable(seconds * factor, 0.01, ALL) for factor in (1.0, 1.05, 1.1)}
    assert len(counts) <= 2


@pytest.mark.parametrize("inference", [1e-4, 0.01, 1.0])
def test_the_verdict_has_its_time_within_the_budget_and_a_quarter_of_it_at_most(monkeypatch, inference):
    found = paced(monkeypatch, 10.0, inference)
    assert found.end == 600.0
    assert 0.75 * 600.0 <= found.deadline <= 0.97 * 600.0


def test_without_a_budget_there_is_no_end(monkeypatch):
    found = paced(monkeypatch, 0.0, 0.1)
    assert math.isinf(found.deadline)
    assert math.isinf(found.end)
    assert found.samples == found.first == ALL
