"""Trials on a Dask cluster: a real scheduler and two workers, one of which is killed in the middle of a trial."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pumice.errors import PumiceError
from pumice.measure import pick_runtime
from pumice.model import save
from pumice.pipeline import compress
from pumice.search import search
from pumice.testing.models import random_feeds, tiny_cnn

pytestmark = pytest.mark.filterwarnings("ignore")  # of distributed, its event loop and its sockets
LIMITS = {"searcher": "random", "trials": 4, "budget": 0.0, "max_drop": 0.1, "goal": "size"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problem")
    save(tiny_cnn(), folder / "model.onnx")
    (feeds,) = random_feeds(1, size=600)
    (scores,) = pick_runtime("reference").open(tiny_cnn()).run(feeds).values()
    np.savez(folder / "data.npz", **feeds, labels=scores.reshape(600, -1).argmax(axis=1))
    return folder / "model.onnx", folder / "data.npz"


@pytest.fixture
def cluster(tmp_path):
    """The address of a scheduler, and its two workers."""
    address = tmp_path / "scheduler.json"
    told = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    quiet = ["--no-dashboard", "--scheduler-file", address]

    def start(which, *options):
        return subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{which}", *quiet, *options], **told)

    running = [start("scheduler", "--host", "127.0.0.1", "--port", "0")]
    try:
        until(address.exists)
        running += [start("worker", "--no-nanny", "--nthreads", "1", "--memory-limit", "0") for _ in range(2)]
        yield json.loads(address.read_text())["address"], running[1:]
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def until(true):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def busy(address, pid):
    """Whether the worker with this process id is at a trial now."""
    from distributed import Client

    with Client(address, timeout=PATIENCE) as client:

        def is_busy():
            pids = client.run(os.getpid)
            return any(client.processing()[worker] for worker, found in pids.items() if found == pid)

        until(is_busy)
    return True


def test_a_search_survives_the_death_of_a_worker(problem, cluster, tmp_path):
    address, (victim, _) = cluster
    killed = []

    def kill():
        if busy(address, victim.pid):
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.wait())

    killer = threading.Thread(target=kill)
    killer.start()
    settings = {"executor": f"dask://{address}", "workers": 2, "study": str(tmp_path / "study")}
    found = search(*problem, {**LIMITS, **settings})
    killer.join()
    assert killed == [-signal.SIGKILL]
    assert sorted(t.number for t in found.trials) == [1, 2, 3, 4]
    assert not [t.reason for t in found.trials if "lost" in t.reason]
    winner = found.verdict.winner
    kept = [one for one in found.verdict.verified if not one.broken]
    assert winner.figures.file_bytes == min(one.figures.file_bytes for one in kept)
    save(compress(*problem, found.recipe, measure=False).model, tmp_path / "alone.onnx")
    assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / "study" / "models" / winner.trial.model).read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(problem, tmp_path, monkeypatch):
    monkeypatch.setattr("pumice.search.workers.ANSWERS_WITHIN", 0.3)
    with pytest.raises(PumiceError, match=r"no Dask scheduler answers at '127.0.0.1:9'"):
        search(*problem, {**LIMITS, "executor": "dask://127.0.0.1:9", "study": str(tmp_path)})


def test_a_cluster_needs_a_folder_that_its_workers_see(problem):
    with pytest.raises(PumiceError, match="give --study"):
        search(*problem, {**LIMITS, "executor": "dask://127.0.0.1:9"})
