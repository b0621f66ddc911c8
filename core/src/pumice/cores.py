"""The processor's cores that this process may use: in a container, or under `taskset`, fewer than there are."""

from __future__ import annotations

import os


def usable_cores() -> tuple[int, ...]:
    """Their numbers, ascending; as many as the machine has where the system does not tell."""
    allowed = getattr(os, "sched_getaffinity", None)
    return tuple(sorted(allowed(0))) if allowed else tuple(range(os.cpu_count() or 1))


def confined() -> bool:
    """Whether there are cores that this process may not use."""
    return len(usable_cores()) < (os.cpu_count() or 1)
