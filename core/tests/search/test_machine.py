"""While one recipe is timed nothing else computes, whoever runs it: threads and processes alike."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from pumice.errors import OutOfTime
from pumice.search.machine import Wait, computing, measuring


def turns(worker):
    """(begin, end, alone) of some computations and timings in turn."""
    found = []
    for number in range(6):
        alone = number % 2 == 1
        with measuring() if alone else computing():
            began = time.monotonic()
            time.sleep(0.01)
            found.append((began, time.monotonic(), alone))
    return found


def test_a_timing_overlaps_with_nothing():
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as processes, ThreadPoolExecutor(2) as threads:
        futures = [pool.submit(turns, n) for pool in (processes, threads) for n in range(2)]
        spans = [span for future in futures for span in future.result()]
    for begin, end, alone in spans:
        others = [span for span in spans if span != (begin, end, alone)]
        assert not alone or all(other_end <= begin or end <= start for start, other_end, _ in others)
    assert len(spans) == 24


def test_computations_share_the_machine():
    with computing(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(turns_of_computing).result(timeout=10)


def turns_of_computing(wait=None):
    with computing(wait):
        return True


def test_what_waits_knows_how_long_and_gives_up_when_it_has_waited_enough():
    wait, alone = Wait(), Wait(most=0.05)
    with ThreadPoolExecutor(1) as pool, measuring():
        waiting = pool.submit(turns_of_computing, wait)
        with (
            pytest.raises(OutOfTime, match="until others left the cores"),
            measuring(alone),
        ):
            pass
    assert waiting.result(timeout=10)
    assert wait.seconds >= 0.05
    assert alone.seconds >= 0.05
