"""Processes of one machine share out its cores."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from pumice.cores import keep_to, usable_cores
from pumice.search.workers import shared_out


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
