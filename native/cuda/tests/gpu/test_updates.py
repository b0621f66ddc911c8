"""What training does on a GPU in its own way, against what it does on the CPU."""

import cupy
import numpy as np
import pytest

from pumice.ops.gradient import add_rows
from pumice.train.optimizers import Optimizer
from pumice.train.parameters import Parameters
from pumice_cuda.updates import adaptive


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_update_in_one_pass_is_the_cpus(name, monkeypatch):
    rng = np.random.default_rng(0)
    here = rng.normal(size=(129, 257)).astype(np.float32)
    there = cupy.asarray(here)
    monkeypatch.setattr("pumice.train.optimizers.FUSED", {"cupy": adaptive})
    sides = [
        (Optimizer(name=name, decay=0.1), Parameters({"w": w}, frozenset({"w"}), {}, (), {})) for w in (here, there)
    ]
    for _ in range(5):
        grad = rng.normal(size=here.shape).astype(np.float32)
        for (optimizer, parameters), g in zip(sides, (grad, cupy.asarray(grad)), strict=True):
            optimizer.update(parameters, {"w": g}, 1e-2)
    np.testing.assert_allclose(cupy.asnumpy(there), here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_rows_of_a_table_get_the_sums_of_their_gradients(kind):
    rng = np.random.default_rng(0)
    rows, indices = rng.normal(size=(1000, 33)).astype(kind), rng.integers(0, 70, 1000)
    found = cupy.asnumpy(add_rows(cupy.asarray(rows), cupy.asarray(indices), 80))
    wanted = np.zeros((80, 33))
    np.add.at(wanted, indices, rows.astype(np.float64))
    np.testing.assert_allclose(found, wanted.astype(kind), rtol=1e-3 if kind is np.float16 else 1e-6, atol=1e-6)
