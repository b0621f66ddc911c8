"""How many threads a short step is worth, found by running it, and kept on disk.

A step of a few microseconds may be over before a second thread is awake. Where this begins depends on the processor
and on the step's kernel and shapes, so every short step of a program is timed with one thread and with all; the results
are the same bits. What was found is kept in `$PUMICE_CACHE` (or the user's cache folder), a file for every processor,
build of the library and level, under the step's signature: its function, shapes and parameters.

Any number of processes may write: each takes a lock, adds what it found to what is there, and replaces the file by
renaming. A file that cannot be read counts as empty, a folder that cannot be written as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from pumice_cpu import native
from pumice_cpu.runtime.build import build
from pumice_cpu.runtime.compiler import REFERENCE, Instruction
from pumice_cpu.runtime.packing import Packed

VARIABLE = "PUMICE_CACHE"
ROUNDS, SECONDS = 5, 0.1
"""Of timing, at most; but one round there is."""
SHORT_MICROSECONDS = 100.0
"""Of a step with one thread; longer ones are worth all."""
GAIN = 1.05
"""How much faster one thread must be: a step's time repeats within a few percent."""
Measure = Callable[[int], Sequence[float]]


# --- signatures -------------------------------------------------------------------------------------------------------


def signature(instruction: Instruction) -> str:
    """What the time of a step depends on, as a digest; empty for a reference kernel."""
    if instruction.kind == REFERENCE:
        return ""
    operands = [None if v is None else [*v.shape, v.dtype.name] for v in instruction.operands]
    described = [instruction.kind, operands, _described(instruction.fields)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _described(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _described(v) for name, v in value.items()}
    if isinstance(value, np.ndarray):
        return [*value.shape, value.dtype.name]
    if isinstance(value, Packed):
        return [value.kind, _described(value.arguments)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_described(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


# --- on disk ----------------------------------------------------------------------------------------------------------


@attrs.define
class Timings:
    """Threads by signature and number of threads asked for, of one processor, build and level."""

    path: Path | None
    """None: nowhere but in memory."""
    known: dict[str, int] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.known |= self._read()

    def find(self, step: str, threads: int) -> int | None:
        return self.known.get(f"{step}/{threads}")

    def add(self, found: Mapping[str, int], threads: int) -> None:
        """Remember, here and on disk."""
        self.known |= {f"{step}/{threads}": count for step, count in found.items()}
        if self.path is None or not found:
            return
        with contextlib.suppress(OSError), _locked(self.path):
            self.known = self._read() | self.known
            work = self.path.with_name(f".{os.getpid()}-{self.path.name}")
            work.write_text(json.dumps(self.known, sort_keys=True))
            work.replace(self.path)

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.path.read_text()) if self.path else {}
        except (OSError, ValueError):
            return {}
        sound = isinstance(found, dict) and all(isinstance(count, int) for count in found.values())
        return found if sound else {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def timings() -> Timings:
    """Those of this machine, at the level in force."""
    name = hashlib.sha256(f"{_processor()} {build()}".encode()).hexdigest()[:16]
    return _at(_folder() / "timings" / f"{name}.json")


@cache
def _at(path: Path) -> Timings:
    return Timings(path)


def _folder() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pumice"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("model name", "CPU part"))), platform.machine())


# --- choosing ---------------------------------------------------------------------------------------------------------


def limits(steps: Sequence[str], threads: int, measure: Measure, store: Timings | None = None) -> list[int]:
    """Threads for every step, 0 for all that are asked for.

    Args:
        steps: signatures.
        threads: asked for; 0 means `native.threads()`.
        measure: gives the microseconds of every step in a run with so many threads.
        store: what is known; None means this machine's.
    """
    count, store = threads or native.threads(), store or timings()
    if count < 2:
        return [0] * len(steps)
    if any(store.find(step, count) is None for step in steps if step):
        store.add(_measured(steps, count, measure), count)
    return [store.find(step, count) or 0 for step in steps]


def _measured(steps: Sequence[str], count: int, measure: Measure) -> dict[str, int]:
    alone, together = (np.full(len(steps), np.inf) for _ in range(2))
    deadline = time.monotonic() + SECONDS
    for _ in range(ROUNDS):
        np.minimum(alone, measure(1), out=alone)
        np.minimum(together, measure(count), out=together)
        if time.monotonic() > deadline:
            break
    single = (alone < SHORT_MICROSECONDS) & (alone * GAIN < together)
    return {step: int(one) for step, one in zip(steps, single, strict=True) if step}
