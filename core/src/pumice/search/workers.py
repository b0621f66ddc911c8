"""Where recipes are tried: here, in processes of this machine, or on a Dask cluster.

All are `concurrent.futures` executors. A worker that dies costs the trial it was at, which is recorded as failed; the
pool is made anew and the search goes on.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import attrs

from pumice.errors import PumiceError
from pumice.search.laboratory import Laboratory
from pumice.search.machine import can_share
from pumice.search.trial import Trial

DASK = "dask://"


class Here(Executor):
    """Runs what is submitted, at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@attrs.define
class Workers:
    """Submits trials, wherever they run."""

    make: Callable[[], Executor]
    laboratory: Laboratory
    sent: bool
    """Whether the laboratory travels with every trial, or is known where trials run."""
    executor: Executor

    def submit(self, number: int, *proposal: Any) -> Future[Trial]:
        call = (_run, self.laboratory if self.sent else None, number, *proposal)
        try:
            return self.executor.submit(*call)
        except BrokenExecutor:
            self.executor = self.make()
            return self.executor.submit(*call)


@contextmanager
def workers(laboratory: Laboratory) -> Iterator[Workers]:
    """Open the workers that the limits ask for.

    Raises:
        PumiceError: there is no such executor, or the data cannot travel to it.
    """
    asked, count = laboratory.limits.executor, laboratory.limits.workers
    if count == 1 and not asked.startswith(DASK):
        yield Workers(make=Here, laboratory=laboratory, sent=True, executor=Here())
        return
    _require_travel(laboratory)
    make = _dask(asked) if asked.startswith(DASK) else _pool(laboratory, count)
    opened = Workers(make=make, laboratory=laboratory, sent=asked.startswith(DASK), executor=make())
    try:
        yield opened
    finally:
        opened.executor.shutdown(wait=False, cancel_futures=True)


def _require_travel(laboratory: Laboratory) -> None:
    if not can_share():
        raise PumiceError("this system has no file locks to keep timings apart: search with one worker")
    try:
        pickle.dumps(laboratory)
    except Exception:
        raise PumiceError("data in memory cannot travel to other workers: give the path of a file or folder") from None


def _pool(laboratory: Laboratory, count: int) -> Callable[[], Executor]:
    context = multiprocessing.get_context("spawn")
    return lambda: ProcessPoolExecutor(count, mp_context=context, initializer=_know, initargs=(laboratory,))


def _dask(asked: str) -> Callable[[], Executor]:
    try:
        from distributed import Client  # type: ignore[import-not-found]  # optional
    except ImportError:
        raise PumiceError("trials on Dask need its package: pip install distributed") from None
    address = asked.removeprefix(DASK)
    try:
        client = Client(address if "://" in address else f"tcp://{address}", timeout=10)
    except (OSError, ValueError) as error:
        told = f"no Dask scheduler answers at '{address}': {error}"
        raise PumiceError(f"{told}; start one, or check the address") from None
    return lambda: client.get_executor(pure=False, retries=1)


_known: list[Laboratory] = []


def _know(laboratory: Laboratory) -> None:
    """Begins a worker process: models and data are opened once there."""
    _known[:] = [laboratory]


def _run(laboratory: Laboratory | None, *proposal: Any) -> Trial:
    return (laboratory or _known[0]).run(*proposal)
