"""Progress: how a long computation tells a person how far it is, without knowing how that is shown.

Code calls `with progress.task("calibrate", total=64) as advance: ... advance()`. The command line supplies a
`rich` implementation (or plain lines when not a terminal); Python callers get silence unless they pass one.

Where a computation tells how far it is, it can also be ended: `Limited` raises there once its time is over. Whatever
runs a part of itself unshown passes `unshown(progress)` on, so that the part keeps the time as well.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pumice.errors import OutOfTime


class Progress(Protocol):
    """Anything that can show tasks."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Callable[..., None]]:
        """Open a task of `total` units (None: unknown). The value is `advance(units=1)`."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        yield lambda units=1: None


class Limited:
    """Shows nothing, and ends what is over its time."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: from now; may be infinite.
        """
        self._seconds, self._end = seconds, time.perf_counter() + seconds

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """
        Raises:
            OutOfTime: here, or where it advances.
        """

        def advance(units: int = 1) -> None:
            if time.perf_counter() > self._end:
                raise OutOfTime(f"it took more than the {self._seconds:.3g} s it had, at '{label}'")

        advance()
        yield advance


def unshown(progress: Progress) -> Progress:
    """For a part of a computation that a person need not see: it shows nothing, and ends in time all the same."""
    return progress if isinstance(progress, Limited) else Silent()
