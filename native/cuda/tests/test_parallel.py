"""Several GPUs, played by processes that have none."""

import ctypes
import multiprocessing
import os
import sys
import types

import numpy as np
import pytest

from pumice.errors import PumiceError
from pumice_cuda import parallel


def work(peers, path):
    """What a process does here: says who it is, or fails as the second if there is no path."""
    if path is None and peers.rank == 1:
        raise ValueError("no path")
    return ("alone", path) if peers is None else (peers.rank, peers.count, path)


@pytest.fixture
def two(monkeypatch):
    """Two processes, copies of this one, whose peers need no NCCL, on a machine that hides none of its GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    copies = multiprocessing.get_context("fork")
    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda _: copies)
    monkeypatch.setattr(parallel, "_gpus", lambda: 2)
    monkeypatch.setattr(parallel, "_key", lambda: "key")
    monkeypatch.setattr(parallel, "NcclPeers", lambda rank, count, key: types.SimpleNamespace(rank=rank, count=count))


def test_one_gpu_works_alone(monkeypatch):
    monkeypatch.setattr(parallel, "_gpus", lambda: 1)
    assert parallel.in_parallel(work, "here") == ("alone", "here")


@pytest.mark.parametrize("gpus", [0, 3])
def test_as_many_gpus_as_are_not_there_are_refused(two, monkeypatch, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(PumiceError, match=f"training on {gpus} GPUs cannot be had, as this process sees 2: ask for 1"):
        parallel.in_parallel(work, "here", gpus=gpus)


def test_several_gpus_without_nccl_are_refused(monkeypatch, gpu):
    monkeypatch.setattr(parallel, "_gpus", lambda: 2)
    monkeypatch.setattr(gpu.cuda, "nccl", types.SimpleNamespace(available=False), raising=False)
    monkeypatch.setitem(sys.modules, "cupy.cuda", gpu.cuda)
    with pytest.raises(PumiceError, match="needs NCCL, which is not installed: pip install nvidia-nccl-cu13"):
        parallel.in_parallel(work, "here")


def test_the_result_is_that_of_the_first_process(two):
    assert parallel.in_parallel(work, "here") == (0, 2, "here")


def test_a_process_that_fails_ends_the_others(two):
    with pytest.raises(RuntimeError, match="training on GPU 1 failed: ValueError: no path") as failure:
        parallel.in_parallel(work, None)
    assert 'raise ValueError("no path")' in failure.value.__notes__[0]


def seen(peers):
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(("given", "first"), [("5, 3", "5"), (None, "0")])
def test_a_process_sees_its_own_gpu_only(two, monkeypatch, given, first):
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert parallel.in_parallel(seen) == first


@pytest.fixture
def calls(gpu, monkeypatch):
    """What NCCL is asked for; every peer has the same array, so that a sum of two is its double."""
    calls = []

    def all_reduce(send, receive, count, kind, how, stream):
        calls.append((count, kind, how, stream))
        (np.ctypeslib.as_array((ctypes.c_float * count).from_address(receive)))[:] *= 2

    communicator = types.SimpleNamespace(allReduce=all_reduce)
    nccl = types.SimpleNamespace(
        NcclCommunicator=lambda *_: communicator, NCCL_SUM="sum", **{kind: kind for kind in parallel.TYPES.values()}
    )
    monkeypatch.setattr(gpu.cuda, "nccl", nccl, raising=False)
    monkeypatch.setattr(gpu.cuda, "get_current_stream", lambda: types.SimpleNamespace(ptr=9))
    monkeypatch.setitem(sys.modules, "cupy.cuda", gpu.cuda)
    return calls


def test_sums_go_through_nccl_in_the_shape_of_the_array(gpu, calls):
    given = {"matrix": gpu.asarray(np.float32([[1, 2], [3, 4]]).T), "number": gpu.asarray(np.float32(5))}
    totals = parallel.NcclPeers(0, 2, "key").total(given)
    np.testing.assert_array_equal(gpu.asnumpy(totals["matrix"]), [[2, 6], [4, 8]])
    assert (totals["number"].shape, float(totals["number"])) == ((), 10)
    assert float(given["number"]) == 5
    assert calls == [(4, "NCCL_FLOAT32", "sum", 9), (1, "NCCL_FLOAT32", "sum", 9)]
