"""Where recipes are tried: here, in processes of this machine, or on a Dask cluster.

All are `concurrent.futures` executors. A process that dies costs the trial it was at, which is recorded as failed; the
pool is made anew and the search goes on. On a cluster the trial runs again on another worker.

Processes of this machine share out the cores that they may use, so that each computes and is timed on its own, and none
waits for another. The laboratory travels once, through the folder of the study, and is opened where trials run.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.cores import keep_to, usable_cores
from pumice.errors import PumiceError
from pumice.search.laboratory import Laboratory
from pumice.search.machine import can_share
from pumice.search.trial import Trial

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from distributed import Client

HERE, DASK = "processes", "dask://"
ANSWERS_WITHIN = 10
"""Seconds in which a scheduler must answer."""


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
    run: Callable[[Trial, float], Trial]
    """Tries a recipe; can travel to where trials run."""
    executor: Executor
    end: Callable[[], None] = attrs.field(default=lambda: None)
    """Gives up what still runs."""

    def submit(self, trial: Trial, seconds: float) -> Future[Trial]:
        """Try a recipe, within so many seconds from when a worker takes it."""
        try:
            return self.executor.submit(self.run, trial, seconds)
        except BrokenExecutor:
            self.executor = self.make()
            return self.executor.submit(self.run, trial, seconds)


@contextmanager
def workers(laboratory: Laboratory) -> Iterator[Workers]:
    """Open the workers that the limits ask for.

    Raises:
        PumiceError: there is no such executor, or the data cannot travel to it.
    """
    asked, count = laboratory.limits.executor, laboratory.limits.workers
    if asked != HERE and not asked.startswith(DASK):
        raise PumiceError(f"there is no executor '{asked}': write {HERE}, or {DASK}HOST:PORT")
    if asked.startswith(DASK):
        with _cluster(laboratory, asked.removeprefix(DASK)) as client:
            run = _travelling(laboratory)
            # A client's executor refuses the arguments that the interface has for shutting down; closing it is enough.
            make = functools.partial(client.get_executor, pure=False)
            yield Workers(make=make, run=run, executor=make())
    elif count > 1:
        started = multiprocessing.get_context("spawn").SimpleQueue()
        make = functools.partial(processes, count, started)
        opened = Workers(
            make=make, run=_travelling(laboratory), executor=make(), end=functools.partial(end_processes, started)
        )
        try:
            opened.executor.submit(os.getpid).result()
            yield opened
        except BrokenExecutor:
            told = "worker processes end as they begin: search from a file, in a script below"
            raise PumiceError(f"{told} `if __name__ == '__main__':`") from None
        except BaseException:  # an interruption as well: what runs would go on to its end
            opened.end()
            raise
        finally:
            opened.executor.shutdown(wait=False, cancel_futures=True)
    else:
        yield Workers(make=Here, run=laboratory.run, executor=Here())


def processes(count: int, started: SimpleQueue[int]) -> ProcessPoolExecutor:
    """So many processes, each with its share of the cores; as they begin, they put their numbers into `started`."""
    context = multiprocessing.get_context("spawn")
    waiting = context.SimpleQueue()
    for share in shared_out(usable_cores(), count):
        waiting.put(share)
    return ProcessPoolExecutor(count, context, _begin, (waiting, started))


def end_processes(started: SimpleQueue[int]) -> None:
    """End the processes that have begun."""
    begun = set()
    while not started.empty():
        begun.add(started.get())
    for process in multiprocessing.active_children():
        if process.pid in begun:
            process.kill()


def shared_out(cores: Sequence[int], count: int) -> list[Sequence[int]]:
    """The cores of each of so many workers: its own, or all of them where there are too few."""
    return [cores[at::count] for at in range(count)] if len(cores) >= count else [cores] * count


def _begin(waiting: SimpleQueue[Sequence[int]], started: SimpleQueue[int]) -> None:
    """Keep this process to its share of the cores, tell its number, and leave its end to the one that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_to(waiting.get())
    started.put(os.getpid())
    threading.Thread(target=_end_with_parent, name="pumice-orphan", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _cluster(laboratory: Laboratory, address: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise PumiceError("trials on Dask need its package: pip install 'pumice[dask]'") from None
    if not laboratory.limits.study:
        raise PumiceError("trials on Dask need a folder that all its workers see: give --study (study=)")
    try:
        client = Client(address if "://" in address else f"tcp://{address}", timeout=ANSWERS_WITHIN)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        told = f"no Dask scheduler answers at '{address}': {error}"
        raise PumiceError(f"{told}; start one, or check the address") from None
    with client:
        yield client


def _travelling(laboratory: Laboratory) -> Callable[[Trial, float], Trial]:
    """What tries a recipe wherever the laboratory's folder is seen.

    Raises:
        PumiceError: recipes cannot be tried at once here, or the data are not such as can be written down.
    """
    if not can_share():
        raise PumiceError("this system has no file locks to keep timings apart: search with one worker")
    laboratory = attrs.evolve(
        laboratory,
        model=laboratory.model.resolve(),
        source=_absolute(laboratory.source),
        test=_absolute(laboratory.test),
        folder=laboratory.folder.resolve(),
    )
    try:
        written = pickle.dumps(laboratory)
    except Exception:
        raise PumiceError("data in memory cannot travel to other workers: give the path of a file or folder") from None
    path = laboratory.folder / "laboratory.pickle"
    path.write_bytes(written)
    return functools.partial(_run, path, hashlib.sha256(written).hexdigest())


def _absolute(data: Any) -> Any:
    """A path as it is called everywhere; other data as they are."""
    return Path(data).resolve() if isinstance(data, str | Path) else data


def _run(path: Path, digest: str, trial: Trial, seconds: float) -> Trial:
    return _opened(path, digest).run(trial, seconds)


@functools.lru_cache(maxsize=1)
def _opened(path: Path, digest: str) -> Laboratory:
    """The laboratory that lies there, opened once; its models and data stay open for the trials that follow."""
    written = path.read_bytes()
    if hashlib.sha256(written).hexdigest() != digest:
        raise PumiceError(f"'{path}' is not what this search wrote: do not search twice at once in one folder")
    found: Laboratory = pickle.loads(written)  # noqa: S301  # what the digest names, this search itself has written
    return found
