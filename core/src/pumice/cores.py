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
    if not hasattr(os, "sched_setaffinity"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)


def confined() -> bool:
    """Whether there are cores that this process may not use."""
    return len(usable_cores()) < (os.cpu_count() or 1)
