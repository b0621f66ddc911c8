"""A computation that does not tell how far it is ends in time all the same."""

import math
import time

import pytest

from pumice.errors import OutOfTime
from pumice.search import overdue
from pumice.search.overdue import ended_after


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(overdue, "GRACE", 0.05)
    monkeypatch.setattr(overdue, "AGAIN", 0.2)


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        math.sqrt(2.0)


def test_what_is_silent_is_interrupted():
    began = time.perf_counter()
    with pytest.raises(OutOfTime), ended_after(0.1):
        busy(60.0)
    assert time.perf_counter() - began < 10.0


def test_what_catches_the_interruption_is_interrupted_again():
    caught = []

    def stubborn():
        try:
            busy(60.0)
        except OutOfTime as error:
            caught.append(error)
        busy(60.0)

    with pytest.raises(OutOfTime), ended_after(0.0):
        stubborn()
    assert len(caught) == 1


@pytest.mark.parametrize("seconds", [5.0, math.inf])
def test_what_ends_in_time_is_left_alone_and_so_is_what_follows(seconds):
    with ended_after(seconds):
        busy(0.01)
    busy(0.2)


def test_nothing_rises_once_it_is_left():
    for _ in range(20):
        try:
            with ended_after(0.0):
                busy(0.05)  # about as long as it may take
        except OutOfTime:
            pass
        busy(0.02)
