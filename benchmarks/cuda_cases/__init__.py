"""The cases of `bench_cuda.py`: every module of this package has `cases(quick)`, which yields `Case` records.

A case builds its arrays on the GPU and hands over calls: ours and the peers', one a set of inputs, so that going round
the sets leaves nothing in the cache. Before it is timed, `check` runs ours on fresh random data into poisoned outputs
and compares with a reference.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

Work = Callable[[], Any]


@attrs.frozen(kw_only=True)
class Contest:
    """What a case has built: every sequence has one call for each set of inputs."""

    check: Callable[[], str | None]
    """None if ours is right, else what is wrong."""
    ours: Sequence[Work]
    peers: Mapping[str, Sequence[Work]]


@attrs.frozen(kw_only=True)
class Case:
    """One row of the table."""

    family: str
    """Name of the module: `--only` selects by it."""
    name: str
    operations: float = 0.0
    """Of one call, a multiply-add counting two; 0 where the rate of moving bytes is shown."""
    moved: float
    """The fewest bytes that a call reads and writes; decides how many sets of inputs are needed."""
    target: float
    """Ratio to the best peer that is asked for; 1 is level."""
    needs: Sequence[str] = ()
    """Packages of its peers beside PyTorch."""
    build: Callable[[int], Contest]
    """Given how many sets of inputs to make."""


def all_cases(quick: bool, only: set[str]) -> Iterator[Case]:
    """Of every family, or of those named."""
    for found in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if not only or found in only:
            yield from importlib.import_module(f"{__name__}.{found}").cases(quick)


def poisoned(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of bytes 0xFF: NaN, or -1 and 255, none of which a sound result holds throughout."""
    import cupy

    out = cupy.empty(shape, dtype)
    out.view(np.uint8).fill(0xFF)
    return out


def relative_error(found: Any, reference: Any) -> float:
    """|found - reference| / |reference| in the Euclidean norm, in float64; NaN where anything is NaN."""
    import cupy

    reference = reference.astype(np.float64)
    return float(cupy.linalg.norm(found.astype(np.float64) - reference) / cupy.linalg.norm(reference))
