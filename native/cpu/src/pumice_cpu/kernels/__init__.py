"""The operators that run in C: one module a family, each with `KERNELS`, a tuple of records.

A module here says which nodes it accepts and hands arrays to the family's Python functions; it imports no compiled code
at its top.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from pumice.ops.record import Kernel


def all_kernels() -> Iterator[Kernel]:
    """The records of every module of this package."""
    for found in pkgutil.iter_modules(__path__):
        for kernel in importlib.import_module(f"{__name__}.{found.name}").KERNELS:
            yield attrs.evolve(kernel, variant=_variant, limited=_limited)


def _variant() -> str:
    from pumice_cpu import native

    return f"level {native.level()}, {native.threads()} threads"


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    from pumice_cpu import native

    with native.at_most(threads):
        yield
