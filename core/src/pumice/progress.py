"""Progress: how a long computation tells a person how far it is, without knowing how that is shown.

Code calls `with progress.task("calibrate", total=64) as advance: ... advance()`. The command line supplies a
`rich` implementation (or plain lines when not a terminal); Python callers get silence unless they pass one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


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
