"""Processes of one machine share out its cores, and end when the search does."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import pytest

from pumice.cores import keep_to, usable_cores
from pumice.search.workers import end_processes, processes, shared_out


@pytest.mark.parametrize(("cores", "count"), [((0, 1, 2, 3, 4, 5), 3), ((2, 5, 7), 2), ((3, 4), 2)])
def test_every_worker_has_cores_of_its_own_and_none_is_idle(cores, count):
    shares = shared_out(cores, count)
    assert len(shares) == count
    assert sorted(core for share in shares for core in share) == sorted(cores)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_where_there_are_fewer_cores_than_workers_all_share_them():
    assert shared_out((0, 1), 3) == [(0, 1)] * 3


def test_a_process_that_keeps_to_a_core_has_no_other():
    core = usable_cores()[-1]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), keep_to, ((core,),)) as process:
        assert process.submit(usable_cores).result(timeout=120) == (core,)


def test_what_runs_is_ended_with_the_search():
    started = multiprocessing.get_context("spawn").SimpleQueue()
    executor = processes(1, started)
    executor.submit(os.getpid).result(timeout=120)
    running = executor.submit(time.sleep, 600.0)
    end_processes(started)
    with pytest.raises(BrokenExecutor):
        running.result(timeout=60)
    executor.shutdown()


ORPHAN = """
import multiprocessing, os, time
from pumice.search.workers import processes

if __name__ == "__main__":
    pool = processes(1, multiprocessing.get_context("spawn").SimpleQueue())
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600.0).result()
"""


def test_a_worker_ends_with_the_process_that_began_it(tmp_path):
    (tmp_path / "search.py").write_text(ORPHAN)
    begun = subprocess.Popen([sys.executable, tmp_path / "search.py"], stdout=subprocess.PIPE, text=True)
    worker = Path("/proc", begun.stdout.readline().strip(), "stat")
    assert lives(worker)
    begun.kill()
    begun.communicate()
    end = time.monotonic() + 60.0
    while lives(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not lives(worker)


def lives(stat):
    """Whether there is such a process, and not just what it left for its parent to read."""
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
