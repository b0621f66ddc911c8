import gc
from types import SimpleNamespace

import numpy as np
import pytest

from pumice.measure import interleaved_latency, speedup
from pumice.measure.latency import LEAST_ROUNDS, Latency


class Clock:
    """A clock that only the measured callables move, so that nothing here depends on the machine."""

    def __init__(self):
        self.seconds = 0.0
        self.calls = []

    def work(self, name, milliseconds):
        def call():
            self.calls.append(name)
            self.seconds += milliseconds / 1000

        return call


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    fake = SimpleNamespace(perf_counter=lambda: made.seconds, perf_counter_ns=lambda: round(made.seconds * 1e9))
    monkeypatch.setattr("pumice.measure.latency.time", fake)
    return made


def latency(times):
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return Latency(median=median, low=low, high=high, rounds=len(times), calls=len(times), times=np.asarray(times))


def test_callables_take_turns(clock):
    interleaved_latency({"a": clock.work("a", 2), "b": clock.work("b", 2)}, rounds=6, warmup=0)
    assert clock.calls[-12:] == list("abbaabbaabba")


def test_several_callables_of_one_name_take_turns(clock):
    interleaved_latency({"a": [clock.work(i, 2) for i in range(3)]}, rounds=6, warmup=0)
    assert clock.calls[-6:] == [0, 1, 2, 0, 1, 2]


def test_a_time_is_that_of_one_call(clock):
    found = interleaved_latency({"a": clock.work("a", 2), "b": clock.work("b", 6)}, rounds=9, warmup=0)
    assert found["a"].median == pytest.approx(2)
    assert found["b"].median == pytest.approx(6)
    ratio = speedup(found["a"], found["b"])
    assert ratio.median == pytest.approx(1 / 3)
    assert ratio.verdict == "slower"


def test_fast_callables_are_timed_in_blocks(clock):
    found = interleaved_latency({"a": clock.work("a", 0.01)}, rounds=3, warmup=0)["a"]
    assert found.calls == pytest.approx(100 * found.rounds, rel=0.02)
    assert found.median == pytest.approx(0.01)


def test_every_callable_is_warm_before_anything_is_timed(clock):
    interleaved_latency({"a": clock.work("a", 10)}, rounds=1, warmup=0.2)
    assert len(clock.calls) == pytest.approx(22, abs=1)


def test_steady_times_end_early(clock):
    found = interleaved_latency({"a": clock.work("a", 1.5), "b": clock.work("b", 3)}, seconds=100, warmup=0)
    assert LEAST_ROUNDS <= found["a"].rounds <= LEAST_ROUNDS + 8


def test_the_time_allowed_is_kept(clock):
    rng = np.random.default_rng(0)

    def erratic():
        clock.seconds += 0.002 * rng.lognormal(sigma=1.0)

    interleaved_latency({"a": clock.work("a", 2), "b": erratic}, seconds=1, warmup=0)
    assert 2.0 <= clock.seconds < 2.1


def test_a_slow_callable_still_runs_three_rounds(clock):
    found = interleaved_latency({"a": clock.work("a", 5000)}, seconds=1, warmup=0)
    assert found["a"].rounds == 3


def test_the_same_times_in_another_order_are_as_fast():
    times = np.random.default_rng(0).normal(5, 0.1, 101)
    found = speedup(latency(times), latency(times[::-1]))
    assert found.verdict == "as fast"
    assert found.median == pytest.approx(1, abs=0.01)


def test_ratios_cancel_what_a_round_had_in_common():
    load = np.random.default_rng(0).uniform(1, 10, 51)
    found = speedup(latency(3 * load), latency(load))
    assert (found.low, found.median, found.high) == pytest.approx((3, 3, 3))
    assert found.verdict == "faster"


def test_throughput_counts_the_samples_of_a_batch():
    assert latency([4.0]).throughput(8) == 2000


def test_garbage_is_not_collected_while_the_clock_runs():
    seen = []
    interleaved_latency({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=0)
    assert seen[-1] is False
    assert gc.isenabled()
