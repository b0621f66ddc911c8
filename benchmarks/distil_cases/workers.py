"""Trainings side by side: as many processes as there are cores, each on a core of its own with one thread.

A task is a function of this package and its arguments; results come back in the order of the tasks. Seeds are repeated
as whole trainings, and what two ways of training differ by is judged over the pairs of equal seeds.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy import stats

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Task = tuple[Callable[..., Any], tuple[Any, ...]]


def all_of(tasks: Iterable[Task]) -> list[Any]:
    """The results of tasks, in their order."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited by the processes
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for core in cores:
        free.put(core)
    with ProcessPoolExecutor(len(cores), context, initializer=_pin, initargs=(free,)) as pool:
        return [done.result() for done in [pool.submit(function, *arguments) for function, arguments in tasks]]


def _pin(free: Any) -> None:
    os.sched_setaffinity(0, {free.get()})


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean, by Student's t; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
