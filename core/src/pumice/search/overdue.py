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
    thread, inside, raising = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Lock()
    inside.acquire()

    def watch() -> None:
        wait = max(seconds, 0.0) + GRACE
        while not inside.acquire(timeout=wait):
            with raising:
                if inside.locked():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTime))
            wait = AGAIN

    def leave() -> None:  # bare locks alone: an interruption inside an Event or a join would leave them broken
        if inside.locked():
            inside.release()
        with raising:
            pass
        for _ in range(2):  # what was let rise and has not risen does so here, where the loop jumps back, not outside
            pass

    threading.Thread(target=watch, name="pumice-overdue", daemon=True).start()
    try:
        try:
            yield
        finally:
            leave()
    finally:
        leave()  # an interruption may have risen while it was left; there is not another for `AGAIN` seconds
