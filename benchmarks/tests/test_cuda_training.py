"""Training on a GPU in small: the same code as the benchmark's, with NumPy posing as CuPy."""

import importlib.util
import sys
import types
from pathlib import Path

import bench_cuda_training as bench
import numpy as np
import pytest
from models.transformers import Shape, drawn, is_described

from pumice.autograd import Tape
from pumice.distil.memory import planned
from pumice.plan import compile_plan
from pumice.train import Parameters
from pumice_cuda import placing

FAKE = Path(__file__).parents[2] / "native" / "cuda" / "tests" / "fake_cupy.py"


class Pool:
    """Memory of which every look finds a little more in use."""

    def __init__(self):
        self.used, self.limit = 0, 0

    def used_bytes(self):
        self.used += 1000
        return self.used

    total_bytes = used_bytes

    def set_limit(self, size):
        self.limit = size

    def free_all_blocks(self):
        return None


class Hook:
    """Allocations go unseen."""

    def __enter__(self):
        return self.malloc_postprocess()

    def __exit__(self, *_):
        return None


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("fake_cupy", FAKE)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    module, pool = fake.module(), Pool()

    class Draws:
        def __init__(self, seed):
            self._draws = np.random.default_rng(seed)

        def standard_normal(self, shape, dtype):
            return fake.ndarray(self._draws.standard_normal(shape, dtype))

    module.random = types.SimpleNamespace(default_rng=Draws)
    module.get_default_memory_pool = lambda: pool
    module.cuda.MemoryHook = Hook
    monkeypatch.setattr(placing, "_claim", lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", fake.special())
    return module


@pytest.mark.parametrize("causal", [True, False])
def test_every_weight_of_a_transformer_gets_a_gradient(causal):
    shape = Shape(width=16, layers=2, heads=2, length=8, words=20, causal=causal, dtype="float32")
    plan = compile_plan(drawn(shape.model()), kernels=())
    parameters = Parameters.of(plan)
    feeds = {"x": np.arange(16).reshape(2, 8)}
    outputs, pull = Tape(plan, parameters.values).forward({**feeds, **parameters.values})
    assert outputs["y"].shape == ((2, 8, 20) if causal else (2, 2))
    grads = pull({"y": np.random.default_rng(0).standard_normal(outputs["y"].shape).astype(np.float32)})
    biases_of_keys = {name for name in grads if name.endswith(".k.b")}  # a softmax does not see them
    assert {name for name, grad in grads.items() if not grad.any()} <= biases_of_keys


def test_a_token_of_gpt_sees_only_those_before_it():
    plan = compile_plan(
        drawn(Shape(width=16, layers=2, heads=2, length=8, words=20, dtype="float32").model()), kernels=()
    )
    x = np.arange(8)[None]
    changed = np.where(np.arange(8) < 5, x, 19)
    one, other = (plan.run({"x": value})["y"] for value in (x, changed))
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).any()


def test_three_billion_weights_are_described_without_memory():
    model = bench.TEACHER.model()
    held = [value.const_value.numpy() for value in model.graph.initializers.values()]
    assert sum(array.size for array in held) == pytest.approx(3.06e9, rel=0.01)
    assert sum(array.nbytes for array in held if not is_described(array)) < 10e6


def test_half_precision_is_planned_for_with_half_the_residuals():
    half, single = (
        planned(model, model, bench.SETTINGS, {"x": (4, 16)})
        for dtype in ("float16", "float32")
        for model in [Shape(dtype=dtype, **bench.TINY).model()]
    )
    assert half.residuals[1] == single.residuals[1] // 2
    assert half.teacher == pytest.approx(single.teacher / 2, rel=0.01)  # shapes stay whole numbers of 64 bits
    assert half.optimizer == single.optimizer


@pytest.fixture
def pool(gpu, monkeypatch):
    """Memory whose limit does not suffice for a step that keeps everything."""
    pool, step = gpu.get_default_memory_pool(), bench.Trainer.step

    def limited(self, portions):
        if pool.limit and not self.tape.cuts({**portions[0].batch.feeds, **self.parameters.fed()}):
            raise MemoryError(f"Out of memory allocating 512 bytes. The limit is {pool.limit}.")
        return step(self, portions)

    monkeypatch.setattr(bench.Trainer, "step", limited)
    return pool


def test_the_story_of_memory_in_small(pool):
    whole, failed, fewer, more, *plain = bench.memory(quick=True, seconds=60)
    assert {row["metric"] for row in (whole, failed, fewer, more, *plain)} == {"memory"}
    assert failed["answer"] == "out of memory (Out of memory allocating 512 bytes)"
    assert (failed["ratio"], pool.limit) == (None, 0)
    assert "segments" not in failed
    assert whole["segments"] == 1 < fewer["segments"] < more["segments"]
    assert more["residuals"] < whole["residuals"] / 2
    assert [row["segments"] for row in plain] == [1, more["segments"]]
    assert not whole["on the CPU"]


def test_a_student_of_a_teacher_on_the_gpu_learns_the_text(gpu):
    planned, taught = bench.teaching(quick=True, seconds=60)
    assert planned["planned"] > 0
    assert np.mean(taught["losses"][-5:]) < np.mean(taught["losses"][:5])
    assert not taught["on the CPU"]
