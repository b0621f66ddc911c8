"""The cases of `bench_kernels.py`: every module of this package has `cases(quick)`, which yields `Case` records.

Our side of a case is built and run in the benchmark's own process; each peer is built from a module of
`kernel_peers/served` in a process and an environment of its own, and is told only names and numbers.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import attrs

Work = Callable[[], Any]


@attrs.frozen(kw_only=True)
class Case:
    """One row of the table for each number of threads."""

    family: str
    """Name of the module: `--only` selects by it."""
    name: str
    operations: float
    """Of one call, a multiply-add counting two; 0 where none is meant and the rate is not shown."""
    peak: Literal["float", "bfloat", "integer"] | None = None
    """The product whose peak the rate is compared with."""
    target: float
    """Ratio to the best peer that is asked for, or to `rival`; 1 is level."""
    rival: str | None = None
    """The peer that the target is about, where it is not the best of them."""
    weight_bytes: int = 0
    """Of the weights on our side; a case with weights is measured hot and cold."""
    ours: Callable[[int, int], Work]
    """(threads, seed) to a call; another seed makes weights of their own."""
    peers: Mapping[str, Mapping[str, Any]]
    """By peer: what its `build(peer, seed, threads, **this)` in `kernel_peers/served/<family>.py` is given."""


def all_cases(quick: bool, only: set[str]) -> Iterator[Case]:
    """Of every family, or of those named."""
    for found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if not only or found in only:
            yield from importlib.import_module(f"{__name__}.{found}").cases(quick)
