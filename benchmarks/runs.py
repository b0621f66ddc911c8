"""Runs side by side, each in a process of its own on a core of its own, that leave a record as soon as they are done.

A run is a function and its arguments. Its record, what the function returns, is JSON in a folder that all runs of a
benchmark share, under the run's name and a digest of the arguments; a run whose record is there is not repeated. So a
benchmark that is stopped goes on where it was, it can be spread over several calls or machines, and its tables show
what there is. Seeds are repeated as whole runs; what two ways differ by is judged over the pairs of equal seeds.
"""

import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

MOST_WAITING = 3600.0
"""Seconds that are waited for a process at a time."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Record = dict[str, Any]


@attrs.frozen(kw_only=True)
class Run:
    """One process: `function(*arguments, folder)` returns what is recorded, a dictionary or an attrs record."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    """Names of runs that leave something in the folder for this one."""

    def path(self, folder: Path) -> Path:
        """Of the record."""
        digest = hashlib.sha256(repr(self.arguments).encode()).hexdigest()[:8]
        return folder / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{digest}.json"


def carried_out(runs: Sequence[Run], folder: Path, seconds: float | None = None) -> dict[str, Record]:
    """The records by name, of those runs that have one by the end.

    Args:
        runs: the first come first, as cores become free.
        folder: of records, and of files that runs leave for each other.
        seconds: runs that are not done by then are stopped; None lets all finish.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited by the processes
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    by_name = {run.name: run for run in runs}
    waiting = [run for run in runs if not run.path(folder).exists()]
    free, active = sorted(os.sched_getaffinity(0)), dict[Any, tuple[Run, int]]()
    while time.monotonic() < deadline:
        for run in [run for run in waiting if all(by_name[name].path(folder).exists() for name in run.after)]:
            if free:
                waiting.remove(run)
                core = free.pop()
                active[_started(run, folder, core)] = run, core
        if not active:  # what still waits, waits for a run that failed
            break
        left = max(0.0, min(deadline - time.monotonic(), MOST_WAITING))
        multiprocessing.connection.wait([process.sentinel for process in active], left)
        for process in [process for process in active if not process.is_alive()]:
            run, core = active.pop(process)
            free.append(core)
            state = "done" if run.path(folder).exists() else "failed"
            print(f"{run.name}: {state}, {len(active)} running, {len(waiting)} waiting", file=sys.stderr, flush=True)
    for process in active:
        process.terminate()
        process.join()
    return {run.name: json.loads(run.path(folder).read_text()) for run in runs if run.path(folder).exists()}


def _started(run: Run, folder: Path, core: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=_record, args=(run, folder, core), daemon=True)
    process.start()
    return process


def _record(run: Run, folder: Path, core: int) -> None:
    os.sched_setaffinity(0, {core})
    found = run.function(*run.arguments, folder)
    path = run.path(folder)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(attrs.asdict(found) if attrs.has(type(found)) else found))
    part.replace(path)


def over_seeds(records: Mapping[str, Record], name: str, seeds: Iterable[int]) -> dict[int, Record]:
    """The records of the runs called `name/seed`, by seed."""
    found = {seed: records.get(f"{name}/{seed}") for seed in seeds}
    return {seed: record for seed, record in found.items() if record is not None}


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean, by Student's t; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    from scipy import stats  # which runs need not wait for

    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
