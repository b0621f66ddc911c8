"""Training on several GPUs of one machine: a process each, which add their gradients up through NCCL.

    def work(peers, path):                        # runs in every process; what the first returns is the result
        placement = OnDevice()
        ...
        return Trainer(plan, parameters, loss, feeder, settings, placement=placement, peers=peers).fit()

    fit = in_parallel(work, path)

With one GPU `work` runs here and gets None for peers. A process sees its own GPU only, and so do all of its threads.
One that fails ends the others, which would wait for it; its traceback is a note of the error.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from pumice.errors import PumiceError
from pumice_cuda import device

VISIBLE = "CUDA_VISIBLE_DEVICES"
TYPES = {
    "float16": "NCCL_FLOAT16", "bfloat16": "NCCL_BFLOAT16", "float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64",
    "int32": "NCCL_INT32", "int64": "NCCL_INT64",
}  # fmt: skip


class NcclPeers:
    """The processes of `in_parallel`, as `pumice.train.peers.Peers`."""

    def __init__(self, rank: int, count: int, key: Any) -> None:
        from cupy.cuda import nccl

        self.rank, self.count = rank, count
        self._communicator = nccl.NcclCommunicator(count, key, rank)

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Sums over all processes of CuPy arrays, on the current stream."""
        return {name: self._sum(x) for name, x in arrays.items()}

    def _sum(self, x: Any) -> Any:
        import cupy
        from cupy.cuda import nccl

        total = x.copy(order="C")  # `ascontiguousarray` would give a number an axis
        kind, stream, place = getattr(nccl, TYPES[x.dtype.name]), cupy.cuda.get_current_stream().ptr, total.data.ptr
        self._communicator.allReduce(place, place, x.size, kind, nccl.NCCL_SUM, stream)
        return total


def in_parallel(work: Callable[..., Any], *arguments: Any, gpus: int | None = None) -> Any:
    """What `work(peers, *arguments)` returns in the process of the first GPU.

    Args:
        work: a function of a module, which every process imports.
        arguments: what can be pickled.
        gpus: how many; None is all that there are.

    Raises:
        PumiceError: there are not so many, none can be used, or NCCL is not installed.
        RuntimeError: a process failed; the text is its error's.
    """
    count = _asked(gpus)
    if count < 2:
        return work(None, *arguments)
    context, key = multiprocessing.get_context("spawn"), _key()
    ends: dict[Connection, int] = {}
    processes = []
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        member = (there, work, rank, count, key, _visible(rank), arguments)
        processes.append(context.Process(target=_member, args=member))
        processes[-1].start()
        there.close()
        ends[here] = rank
    try:
        return _collected(ends)[0]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _asked(gpus: int | None) -> int:
    """How many processes there are to be; one needs no GPU, as it is what `work` does by itself."""
    if gpus == 1:
        return 1
    there = _gpus()
    if gpus is not None and not 1 <= gpus <= there:
        told = f"training on {gpus} GPUs cannot be had, as this process sees {there}"
        raise PumiceError(f"{told}: ask for 1 to {there}, or look at what {VISIBLE} hides")
    return there if gpus is None else gpus


def _collected(ends: dict[Connection, int]) -> dict[int, Any]:
    """The results by rank.

    Raises:
        RuntimeError: at the first process that fails or dies.
    """
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        for end in wait([end for end, rank in ends.items() if rank not in results]):
            assert isinstance(end, Connection)
            try:
                error, where, results[ends[end]] = end.recv()
            except EOFError:
                error, where = "it ended without a word", ""
            if error:
                failure = RuntimeError(f"training on GPU {ends[end]} failed: {error}")
                failure.add_note(where)
                raise failure
    return results


def _member(
    end: Connection, work: Callable[..., Any], rank: int, count: int, key: Any, gpu: str, arguments: Any
) -> None:
    """One process."""
    os.environ[VISIBLE] = gpu  # CUDA reads it at its first call, which is still to come
    try:
        end.send((None, "", work(NcclPeers(rank, count, key), *arguments)))
    except Exception as error:  # whatever it is, the parent should hear of it
        end.send((f"{type(error).__name__}: {error}", traceback.format_exc(), None))


def _visible(rank: int) -> str:
    """The name of one of the GPUs that this process sees, for another."""
    named = os.environ.get(VISIBLE)
    return named.split(",")[rank].strip() if named else str(rank)


def _key() -> Any:
    """What the processes find each other by.

    Raises:
        PumiceError: there is no NCCL.
    """
    from cupy.cuda import nccl

    if not nccl.available:
        raise PumiceError("training on several GPUs needs NCCL, which is not installed: pip install nvidia-nccl-cu13")
    return nccl.get_unique_id()


def _gpus() -> int:
    """How many this process sees.

    Raises:
        PumiceError: none that can be used; the text says why.
    """
    device.gpu()
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())
