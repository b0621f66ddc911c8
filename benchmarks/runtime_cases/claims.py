"""What the native runtime claims besides being faster than others: ratios of its own, memory, opening, a busy core."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from pumice.measure import interleaved_latency, pick_runtime, speedup

from . import Feed, case, files

OPENINGS, CALLS = 20, 5


@attrs.frozen(kw_only=True)
class Claim:
    """A figure and its bound."""

    id: str
    value: float
    unit: str
    target: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target


def _at_most(name: str, value: float, unit: str, target: float) -> Claim:
    return Claim(id=name, value=value, unit=unit, target=target, at_most=True)


@attrs.frozen
class Opened:
    """A case in the native runtime."""

    session: Any
    feed: Feed

    def __call__(self) -> Any:
        return self.session.run(self.feed)


@contextmanager
def _native(name: str, threads: int) -> Iterator[Opened]:
    chosen = case(name)
    with tempfile.TemporaryDirectory() as folder:
        made = files(chosen, Path(folder))
        session = pick_runtime({"name": "native", "mode": chosen.mode}).open(made.ours, threads=threads)
        yield Opened(session, chosen.feed(np.random.default_rng(0)))


def _times_faster(one: str, other: str, target: float) -> Callable[[float], Claim]:
    def measure(seconds: float) -> Claim:
        with _native(one, 1) as fast, _native(other, 1) as slow:
            found = interleaved_latency({"fast": fast, "slow": slow}, seconds=seconds)
        return Claim(
            id=f"{one} over {other}", value=speedup(found["slow"], found["fast"]).median, unit="x", target=target
        )

    return measure


def _burn(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def _busy(core: int) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_burn, args=(core,), daemon=True)
    process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _one_core_busy(name: str) -> Callable[[float], Claim]:
    """Two threads on two cores, one of which another process wants all the time."""

    def measure(seconds: float) -> Claim:
        before = os.sched_getaffinity(0)
        two = sorted(before)[:2]
        with _native(name, 2) as call:
            os.sched_setaffinity(0, two)
            try:
                alone = interleaved_latency({"alone": call}, seconds=seconds)["alone"].median
                with _busy(two[-1]):
                    beside = interleaved_latency({"beside": call}, seconds=seconds)["beside"].median
            finally:
                os.sched_setaffinity(0, before)
        return Claim(
            id=f"{name}, 2 threads, one core busy", value=beside / alone, unit="x slower", target=2.5, at_most=True
        )

    return measure


@contextmanager
def _stored(name: str) -> Iterator[tuple[Path, Feed]]:
    with _native(name, 1) as opened, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        opened.session.save(opened.feed, path)
        yield path, opened.feed


def _opens(name: str) -> Callable[[float], Claim]:
    def measure(seconds: float) -> Claim:
        with _stored(name) as (path, _):
            times = []
            for _ in range(OPENINGS):
                began = time.perf_counter()
                pick_runtime("native").open(path, threads=1)
                times.append(time.perf_counter() - began)
        return Claim(
            id=f"{name}, opening a stored program",
            value=1e3 * float(np.median(times)),
            unit="ms",
            target=10,
            at_most=True,
        )

    return measure


def _engine_memory(name: str) -> Callable[[float], Claim]:
    """In a fresh process: what is resident after some runs beyond the file, which has the weights, and the arena."""

    def measure(seconds: float) -> Claim:
        with _stored(name) as (path, feed):
            np.savez(path.with_suffix(".npz"), **feed)
            command = [sys.executable, "-c", _MEMORY, str(path), str(path.with_suffix(".npz")), str(CALLS)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            own = found["grown"] - path.stat().st_size - found["arena"] - found["given"]
        return _at_most(f"{name}, memory beyond weights and arena", own / 1e6, "MB", 10)

    return measure


_MEMORY = """
import json, sys
import numpy as np
import psutil
from pumice_cpu import native
from pumice_cpu.runtime.strategy import NativeRuntime
native.library()
feed = dict(np.load(sys.argv[2]))
before = psutil.Process().memory_info().rss
session = NativeRuntime().open(sys.argv[1], threads=1)
for _ in range(int(sys.argv[3])):
    results = session.run(feed)
grown = psutil.Process().memory_info().rss - before
given = sum(array.nbytes for array in results.values())
print(json.dumps({"grown": grown, "arena": session.compiled.executable.arena_bytes, "given": given}))
"""

CLAIMS: dict[str, Callable[[float], Claim]] = {
    "pruned": _times_faster("half resnet50 int8", "resnet50 int8", 1.5),
    "resnet50": _times_faster("resnet50 int8", "resnet50 float", 3.5),
    "bert": _times_faster("bert-base int8", "bert-base float", 3.5),
    "busy cnn": _one_core_busy("resnet50 int8"),
    "busy transformer": _one_core_busy("bert-base int8"),
    "opening": _opens("efficientnet-lite0 int8"),
    "opening float": _opens("efficientnet-lite0 float"),
    "memory": _engine_memory("resnet50 int8"),
    "memory float": _engine_memory("efficientnet-lite0 float"),
}
