"""Who computes on this machine: many at once, or one alone while it is timed.

Both are locks on files of the user's, one for every core that the process may use, shared or exclusive, across
processes and studies; searches that are kept to different cores do not wait for each other. A recipe that waits to be
timed computes nothing, so those that compute finish and those that wait take turns. Where the system has no such locks,
there is one worker (`can_share`).
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import attrs

from pumice.cores import usable_cores
from pumice.errors import OutOfTime

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
PAUSE = 0.02
"""Seconds between two looks at a lock that others hold."""


@attrs.define
class Wait:
    """The seconds that something waited for its turns, and what it waits for them at most."""

    most: float = math.inf
    seconds: float = 0.0


def can_share() -> bool:
    """Whether several recipes may be tried at once here."""
    return fcntl is not None


def computing(wait: Wait | None = None) -> AbstractContextManager[None]:
    """While others may compute too.

    Raises:
        OutOfTime: its turn did not come in time.
    """
    return _held(wait or Wait(), alone=False)


def measuring(wait: Wait | None = None) -> AbstractContextManager[None]:
    """While nothing else of ours computes.

    Raises:
        OutOfTime: its turn did not come in time.
    """
    return _held(wait or Wait(), alone=True)


@contextmanager
def _held(wait: Wait, alone: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with ExitStack() as stack:
        for core in usable_cores():  # in one order everywhere, so that nobody waits in a circle
            path = Path(tempfile.gettempdir(), f"pumice-{os.getuid()}-core{core}.lock")
            _lock(stack.enter_context(path.open("a")), fcntl.LOCK_EX if alone else fcntl.LOCK_SH, wait)
        yield


def _lock(file: IO[str], how: int, wait: Wait) -> None:
    """Wait for a lock, so that the wait can be interrupted."""
    began, before = time.perf_counter(), wait.seconds
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE)
        else:
            return
        wait.seconds = before + time.perf_counter() - began
        if wait.seconds > wait.most:
            raise OutOfTime(f"it waited for more than {wait.most:.3g} s until others left the cores")
