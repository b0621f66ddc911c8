"""The compiled library: loaded once, on first use, at the level that `PUMICE_CPU_ISA` names or the best there is.

A *level* is an instruction set with all that it builds on (`scalar`, `avx2`, `avx512_vnni`, ...). Each level has a
table of kernels; a level without a kernel of its own uses its parent's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pumice.errors import PumiceError

VARIABLE = "PUMICE_CPU_ISA"


class NativeError(PumiceError):
    """The compiled kernels cannot do what was asked."""


@cache
def library() -> Any:
    """The C functions, `lib` of cffi.

    Raises:
        NativeError: the library was not built, or `PUMICE_CPU_ISA` names a level that this machine does not have.
    """
    try:
        from pumice_cpu import _native
    except ImportError as error:
        raise NativeError(
            f"the kernels of pumice-cpu are not compiled ({error}); install pumice-cpu again, or uninstall it"
        ) from error
    _select(_native.lib, os.environ.get(VARIABLE, ""))
    return _native.lib


@cache
def ffi() -> Any:
    """cffi's view of the library's types and memory."""
    library()
    from pumice_cpu import _native

    return _native.ffi


def _text(pointer: Any) -> str | None:
    return str(ffi().string(pointer).decode()) if pointer else None


def _select(lib: Any, name: str) -> None:
    status = lib.pumice_use_level(name.encode())
    if status == lib.PUMICE_OK:
        return
    from pumice_cpu import _native

    names = [_native.ffi.string(lib.pumice_level_name(i)).decode() for i in range(lib.pumice_level_count())]
    usable = ", ".join(level for i, level in enumerate(names) if lib.pumice_level_usable(i))
    absent = status == lib.PUMICE_NOT_ON_THIS_CPU
    what = "asks for instructions that this processor does not have" if absent else "is no level of this build"
    raise NativeError(f"{VARIABLE}={name} {what}; use one of {usable}, or unset it")


def check(status: int, what: str) -> None:
    """Raises NativeError for a status other than OK; `what` names the call for its reader.

    Raises:
        NativeError: the call failed.
    """
    lib = library()
    if status == lib.PUMICE_OK:
        return
    reason = {
        lib.PUMICE_NO_MEMORY: "there is not enough memory; use a smaller batch",
        lib.PUMICE_BAD_ARGUMENT: "its shapes or types do not fit each other; check them",
    }.get(status, f"status {status}")
    raise NativeError(f"{what} failed: {reason}")


# --- levels -----------------------------------------------------------------------------------------------------------


def levels() -> tuple[str, ...]:
    """The levels that this machine can run, weakest first."""
    lib = library()
    names = ((i, _text(lib.pumice_level_name(i))) for i in range(lib.pumice_level_count()))
    return tuple(name for i, name in names if name and lib.pumice_level_usable(i))


def level() -> str:
    """The level in force."""
    return _text(library().pumice_level_in_force()) or ""


def ancestors(name: str) -> tuple[str, ...]:
    """The levels that a level builds on, strongest first."""
    lib, names = library(), [_text(library().pumice_level_name(i)) for i in range(library().pumice_level_count())]
    found: list[str] = []
    at = names.index(name)
    while lib.pumice_level_parent(at) != at:
        at = lib.pumice_level_parent(at)
        found.append(names[at] or "")
    return tuple(found)


@contextmanager
def using_level(name: str) -> Iterator[None]:
    """Run at another level for a while; not for use while other threads compute.

    Raises:
        NativeError: the machine does not have it.
    """
    before = level()
    _select(library(), name)
    try:
        yield
    finally:
        _select(library(), before)


def slots() -> tuple[str, ...]:
    """Names of all kernels in the table."""
    lib = library()
    return tuple(_text(lib.pumice_slot_name(i)) or "" for i in range(lib.pumice_slot_count()))


def giver(slot: str) -> str:
    """The level whose code the level in force uses for a kernel."""
    return _text(library().pumice_slot_level(slots().index(slot))) or ""


def ran(slot: str) -> str | None:
    """The level whose code ran last for a kernel; None if none did since `forget_runs`."""
    return _text(library().pumice_slot_ran(slots().index(slot)))


def forget_runs() -> None:
    """Make `ran` answer None until a kernel runs again."""
    library().pumice_forget_runs()


# --- threads ----------------------------------------------------------------------------------------------------------


def threads() -> int:
    """How many threads a call uses that does not say."""
    return int(library().pumice_threads())


def set_threads(count: int) -> None:
    """Below 1: as many as the process may use."""
    library().pumice_set_threads(count)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """So many threads in calls from this thread that do not say how many."""
    before = library().pumice_limit_threads(count)
    try:
        yield
    finally:
        library().pumice_limit_threads(before)
