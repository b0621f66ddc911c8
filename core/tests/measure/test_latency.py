import gc
import time

import numpy as np
import pytest

from pumice.measure import interleaved_latency, speedup
from pumice.measure.latency import Latency


def sleeper(milliseconds):
    return lambda: time.sleep(milliseconds / 1000)


def test_callables_take_turns():
    calls = []
    interleaved_latency(
        {name: (lambda name=name: (calls.append(name), time.sleep(0.002))) for name in "ab"}, rounds=6, warmup=0
    )
    timed = "".join(calls)[-12:]
    assert {timed[i : i + 2] for i in range(0, 12, 2)} == {"ab", "ba"}


def test_several_callables_of_one_name_take_turns():
    calls = []
    twins = [lambda i=i: (calls.append(i), time.sleep(0.002)) for i in range(3)]
    interleaved_latency({"a": twins}, rounds=6, warmup=0)
    assert calls[-6:] == [0, 1, 2, 0, 1, 2]


def test_a_slower_callable_is_slower():
    found = interleaved_latency({"a": sleeper(2), "b": sleeper(6)}, rounds=9, warmup=0)
    ratio = speedup(found["a"], found["b"])
    assert ratio.verdict == "slower"
    assert 0.2 < ratio.median < 0.55
    assert found["b"].low <= found["b"].median <= found["b"].high


def test_a_callable_against_itself_is_as_fast():
    times = np.random.default_rng(0).normal(5, 0.1, 101)
    one, other = (Latency(median=5, low=5, high=5, rounds=101, calls=101, times=t) for t in (times, times[::-1]))
    assert speedup(one, other).verdict == "as fast"
    assert speedup(one, other).median == pytest.approx(1, abs=0.01)


def test_ratios_cancel_what_a_round_had_in_common():
    load = np.random.default_rng(0).uniform(1, 10, 51)
    one, other = (Latency(median=1, low=1, high=1, rounds=51, calls=51, times=t) for t in (3 * load, load))
    found = speedup(one, other)
    assert (found.low, found.median, found.high) == pytest.approx((3, 3, 3))
    assert found.verdict == "faster"


def test_fast_callables_are_timed_in_blocks():
    found = interleaved_latency({"a": lambda: None}, rounds=3, warmup=0)["a"]
    assert found.calls > 1000 * found.rounds
    assert found.median < 0.05


def test_the_time_allowed_is_kept():
    began = time.perf_counter()
    interleaved_latency({"a": sleeper(1), "b": sleeper(1.5)}, seconds=0.1, warmup=0.01)
    assert time.perf_counter() - began < 3


def test_throughput_counts_the_samples_of_a_batch():
    latency = Latency(median=4.0, low=4.0, high=4.0, rounds=1, calls=1, times=np.array([4.0]))
    assert latency.throughput(8) == 2000


def test_garbage_collection_is_on_again_afterwards():
    interleaved_latency({"a": lambda: gc.isenabled() and None}, rounds=1, warmup=0)
    assert gc.isenabled()
