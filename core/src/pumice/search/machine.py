"""Who computes on this machine: many at once, or one alone while it is timed.

Both are locks on files of the user's, one for every core that the process may use, shared or exclusive, across
processes and studies; searches that are kept to different cores do not wait for each other. A recipe that waits to be
timed computes nothing, so those that compute finish and those that wait take turns. Where the system has no such locks,
there is one worker (`can_share`).
"""

from __future__ import annotations

import getpass
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pumice.cores import usable_cores

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


def can_share() -> bool:
    """Whether several recipes may be tried at once here."""
    return fcntl is not None


@contextmanager
def computing() -> Iterator[None]:
    """While others may compute too."""
    with _held(alone=False):
        yield


@contextmanager
def measuring() -> Iterator[None]:
    """While nothing else of ours computes."""
    with _held(alone=True):
        yield


@contextmanager
def _held(alone: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with ExitStack() as stack:
        for core in usable_cores():  # in one order everywhere, so that nobody waits in a circle
            path = Path(tempfile.gettempdir(), f"pumice-{getpass.getuser()}-core{core}.lock")
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
