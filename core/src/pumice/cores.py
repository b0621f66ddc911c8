"""The processor's cores that this process may use: in a container, or under `taskset`, fewer than there are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def usable_cores() -> tuple[int, ...]:
    """Their numbers, ascending; as many as the machine has where the system does not tell."""
    allowed = getattr(os, "sched_getaffinity", None)
    return tuple(sorted(allowed(0))) if allowed else tuple(range(os.cpu_count() or 1))


def keep_to(cores: Iterable[int]) -> None:
    """Confine this process to some cores, the threads that it has already included, where the system can."""
    threads = Path("/proc/self/task")
    if not threads.is_dir():  # not Linux
        return
    for thread in threads.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


def confined() -> bool:
    """Whether there are cores that this process may not use."""
    return len(usable_cores()) < (os.cpu_count() or 1)
