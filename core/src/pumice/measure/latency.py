"""Latency of several callables, interleaved in one process.

Every round runs each callable for a short block, in an order that rotates from round to round, so that a clock that
slows down or a neighbour that wakes up hits all of them alike. A time is the median over rounds, its spread the
interquartile range; a ratio is the median of the *per-round* ratios, which cancels what a round had in common.
One session may be faster than its twin by several percent, by where its memory happens to lie, so several callables
may stand for one thing; they take turns from round to round.
Rounds go on until the quartiles of every ratio lie close together, or the time is up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.progress import Progress, Silent

LEAST_ROUNDS = 15
BLOCK_SECONDS = 0.001
"""A block repeats a fast callable until it lasts about this long: the clock's own cost vanishes, and yet few blocks are
cut in two by another process."""
NEGLIGIBLE = 0.03
"""Difference in speed that is not worth a word: the same file measured twice differs by as much."""
CLOSE = 0.005
"""Half width of the 95% interval of a median ratio, relative to it, at which enough rounds were run."""


@attrs.frozen(kw_only=True, eq=False)
class Latency:
    """Milliseconds of one call."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: int
    calls: int
    """Calls in all; a round is a block of calls."""
    times: NDArray[np.float64] = attrs.field(repr=False)
    """Milliseconds a call of every round, in order."""

    def throughput(self, batch: int = 1) -> float:
        """Samples a second."""
        return 1000.0 * batch / self.median

    def to_json(self) -> dict[str, Any]:
        return {
            "median_ms": self.median,
            "low_ms": self.low,
            "high_ms": self.high,
            "rounds": self.rounds,
            "calls": self.calls,
        }

    def __str__(self) -> str:
        return f"{self.median:.3g} ms [{self.low:.3g}, {self.high:.3g}]"


@attrs.frozen(kw_only=True)
class Ratio:
    """How many times faster one callable is than another."""

    median: float
    low: float
    """First quartile of the rounds."""
    high: float
    certain_low: float
    """Ends of the 95% interval of the median (order statistics)."""
    certain_high: float

    @property
    def verdict(self) -> str:
        """`faster`, `slower`, or `as fast` where the interval of the median comes within 3% of 1."""
        if self.certain_low > 1.0 + NEGLIGIBLE:
            return "faster"
        return "slower" if self.certain_high < 1.0 - NEGLIGIBLE else "as fast"


def speedup(before: Latency, after: Latency) -> Ratio:
    """Ratio of two latencies measured together: above 1, `after` is faster."""
    ratios = np.sort(before.times / after.times)
    low, high = _median_interval(ratios)
    first, median, third = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return Ratio(median=median, low=first, high=third, certain_low=low, certain_high=high)


def interleaved_latency(
    callables: Mapping[str, Callable[[], Any] | Sequence[Callable[[], Any]]],
    *,
    seconds: float = 2.0,
    rounds: int | None = None,
    warmup: float = 0.2,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time callables against each other.

    Args:
        callables: by name; each does one inference. Several under one name take turns.
        seconds: time to spend at most for each callable (a slow one still runs `LEAST_ROUNDS` rounds, or 3 of those
            longer than a second).
        rounds: exactly so many rounds, instead of as many as the spread asks for.
        warmup: seconds for which each callable runs before anything is timed (and at least twice).
        progress: shows progress; None is silent.
    """
    turns = {name: [call] if callable(call) else list(call) for name, call in callables.items()}
    repeats = {name: min(_warm_up(call, warmup / len(calls)) for call in calls) for name, calls in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in callables}
    order = list(turns)
    done = 0
    deadline = time.perf_counter() + seconds * len(order)
    with (progress or Silent()).task("latency", total=rounds) as advance, _quiet():
        while True:
            for name in order:
                times[name].append(_timed(turns[name][done % len(turns[name])], repeats[name]))
            order.append(order.pop(0))
            done += 1
            advance(1)
            if _enough(times, rounds, deadline):
                break
    return {name: _latency(np.array(found), repeats[name]) for name, found in times.items()}


def _warm_up(call: Callable[[], Any], seconds: float) -> int:
    """Run until warm; returns how many calls make a block."""
    call()
    began, best, calls = time.perf_counter(), float("inf"), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        best = min(best, _timed(call, 1))
        calls += 1
    return max(1, int(BLOCK_SECONDS / (best / 1000.0)))


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds a call."""
    began = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - began) / repeats / 1e6


def _enough(times: Mapping[str, list[float]], rounds: int | None, deadline: float) -> bool:
    done = len(next(iter(times.values())))
    if rounds is not None:
        return done >= rounds
    late = time.perf_counter() >= deadline
    if done < LEAST_ROUNDS:
        return late and done >= 3 and sum(t[-1] for t in times.values()) > 1000.0
    if late:
        return True
    if done % 8:
        return False
    first, *others = (np.array(t) for t in times.values())
    ratios = [first / other for other in others] or [first]
    return all(_is_close(np.sort(r)) for r in ratios)


def _is_close(ratios: NDArray[np.float64]) -> bool:
    low, high = _median_interval(ratios)
    return (high - low) / 2.0 <= CLOSE * float(np.median(ratios))


def _median_interval(ordered: NDArray[np.float64]) -> tuple[float, float]:
    """The 95% interval of the median by order statistics (normal approximation of the binomial)."""
    count = len(ordered)
    half = 1.96 * np.sqrt(count) / 2.0
    low, high = int(np.floor(count / 2.0 - half)), int(np.ceil(count / 2.0 + half))
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])


def _latency(times: NDArray[np.float64], repeats: int) -> Latency:
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return Latency(median=median, low=low, high=high, rounds=len(times), calls=len(times) * repeats, times=times)


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
