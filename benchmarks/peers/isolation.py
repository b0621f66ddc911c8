"""One function call in a process of its own, with a limit on its time and its memory.

Calibration by histogram can hold gigabytes; a quantizer can crash. Neither may take the table with it, so every
quantizer, ours included, runs here. The child is a fresh interpreter (spawned, not forked: onnxruntime's threads do
not survive a fork), what it prints is thrown away, and its data segment is limited by `RLIMIT_DATA`.
"""

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import attrs

SECONDS, GIGABYTES = 600, 8


class Failed(RuntimeError):
    """The call raised, ran out of time or of memory, or its process died; the text is one line."""


@attrs.frozen
class Finished:
    """What a call returned and what it took."""

    value: Any
    seconds: float
    """Wall time of the call, without the start of its process."""
    peak_megabytes: float
    """Peak resident memory of its process, imports included."""


def isolated(
    function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, gigabytes: float = GIGABYTES
) -> Finished:
    """`function(*arguments)` in a new process. All of it must be picklable.

    Raises:
        Failed: with the error's type and first line, or the limit that was hit.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, gigabytes, function, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise Failed(f"took more than {seconds:.0f} s")
        error, finished = ours.recv()
    except EOFError:
        child.join()
        raise Failed(f"its process died with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        ours.close()
    if error:
        raise Failed(error)
    return finished


def _child(answer: Connection, gigabytes: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    if "PUMICE_BENCH_VERBOSE" not in os.environ:
        os.dup2(silence, 2)
    try:
        start = time.perf_counter()
        value = function(*arguments)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        answer.send((None, Finished(value, round(seconds, 2), round(peak))))
    except MemoryError:
        answer.send((f"needs more than {gigabytes:g} GB", None))
    except BaseException as error:
        traceback.print_exc()
        words = (str(error).strip().splitlines() or [""])[0]
        answer.send((f"{type(error).__name__}: {words}", None))
