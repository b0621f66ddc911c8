"""The end of what is over its time, also where it does not tell how far it is.

A computation that shows its progress ends itself there (`Limited`). One that is silent for long is interrupted: another
thread lets the exception `OutOfTime` rise in it, at the next instruction of the interpreter, and again every `AGAIN`
seconds for as long as something catches it. A single call of compiled code (one inference, one product of matrices) is
never broken off, so an end is as late as the longest of these.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pumice.errors import OutOfTime

GRACE, AGAIN = 1.0, 5.0
"""Seconds that a computation has to end itself, and between two interruptions."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Interrupt this thread if it is still inside after so many seconds, which may be infinite.

    Raises:
        OutOfTime: anywhere inside, without a text.
    """
    if math.isinf(seconds):
        yield
        return
    thread, left = ctypes.c_ulong(threading.get_ident()), threading.Event()

    def watch() -> None:
        wait = max(seconds, 0.0) + GRACE
        while not left.wait(wait):
            _raise(thread, OutOfTime)
            wait = AGAIN

    def leave() -> None:
        left.set()
        watcher.join()
        _raise(thread, None)  # what was not raised yet must not rise outside

    watcher = threading.Thread(target=watch, name="pumice-overdue", daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            leave()
    finally:
        leave()  # an interruption may have risen while it was left; there is not another for `AGAIN` seconds


def _raise(thread: ctypes.c_ulong, exception: type[BaseException] | None) -> None:
    """Let an exception rise in a thread, or take back what has not risen."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None if exception is None else ctypes.py_object(exception))
