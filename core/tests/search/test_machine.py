"""While one recipe is timed nothing else computes, whoever runs it: threads and processes alike."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from pumice.search.machine import computing, measuring


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


def turns_of_computing():
    with computing():
        return True
