"""Processes that train together, played by threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import pytest

from pumice.data import Batch, open_dataset
from pumice.errors import DataError
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn
from pumice.train import Parameters, Trainer
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder, Portion
from pumice.train.peers import part


class Table:
    """Where the threads meet and lay down their arrays."""

    def __init__(self, count):
        self.count, self.barrier, self.laid = count, threading.Barrier(count, timeout=30), {}


@attrs.frozen
class Thread:
    rank: int
    table: Table

    @property
    def count(self):
        return self.table.count

    def total(self, arrays):
        self.table.laid[self.rank] = arrays
        self.table.barrier.wait()
        everyone = [self.table.laid[rank] for rank in range(self.count)]
        found = {name: sum(laid[name] for laid in everyone) for name in arrays}
        self.table.barrier.wait()
        return found


@pytest.fixture
def samples():
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    return {"x": x, "labels": (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64)}


def fit(samples, peers=None, **knobs):
    model = tiny_cnn()
    settings = Train(**{"epochs": 2, "batch": 15, "lr": 0.01, **knobs})
    plan = trainable_plan(model)
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    feeder = Feeder(open_dataset(samples, model), settings.batch)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, feeder, settings, peers=peers).fit()


def together(samples, count, **knobs):
    table = Table(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: fit(samples, Thread(rank, table), **knobs), range(count)))


@pytest.mark.parametrize("count", [2, 3])
def test_together_they_learn_what_one_learns_alone(samples, count):
    alone, fits = fit(samples), together(samples, count)
    for found in fits:
        np.testing.assert_allclose(found.history.losses, alone.history.losses, rtol=1e-4)
        for name, value in alone.values.items():
            np.testing.assert_array_equal(found.values[name], fits[0].values[name])
            np.testing.assert_allclose(found.values[name], value, rtol=1e-2, atol=1e-4)


def test_only_the_first_writes_snapshots(samples, tmp_path):
    path = tmp_path / "state"
    table = Table(2)
    with ThreadPoolExecutor(2) as pool:
        paths = [str(path), str(tmp_path / "other")]
        list(pool.map(lambda rank: fit(samples, Thread(rank, table), snapshot=paths[rank]), range(2)))
    assert [found.name for found in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_shared_is_refused():
    portion = Portion(Batch(feeds={"x": np.zeros((2, 1))}, labels=np.zeros(2), size=2))
    with pytest.raises(DataError, match="2 samples cannot be shared by 3 GPUs"):
        part(portion, Thread(0, Table(3)))
    with pytest.raises(DataError, match="mixup"):
        part(attrs.evolve(portion, mixed=0.3), Thread(0, Table(2)))
