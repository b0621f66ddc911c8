"""The runtime on a GPU: the contract of every runtime, and recordings."""

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan
from pumice.quantize.simulation import simulate
from pumice.testing import RuntimeContract
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_cuda.runtime.strategy import CudaRuntime
from pumice_cuda.transfers import counting


class TestCudaRuntime(RuntimeContract):
    strategy = CudaRuntime


@pytest.mark.parametrize("graphs", [True, False])
def test_a_replay_gives_what_single_operators_give(graphs):
    opened, batches = CudaRuntime(graphs=graphs).open(tiny_cnn()), random_feeds(4)
    alone = [opened.run(feeds) for feeds in batches]
    for feeds, first in zip(batches, alone, strict=True):
        with counting() as moved:
            again = opened.run(feeds)
        assert (moved.into, moved.out) == (1, 1)
        for name, value in first.items():
            np.testing.assert_array_equal(again[name], value)
    assert ("replayed" in opened.description) == graphs


def test_integers_are_those_of_the_simulation(quantized):
    (feeds,) = random_feeds(1)
    got, want = CudaRuntime().open(quantized).run(feeds), simulate(quantized).run(feeds)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def counted():
    """y = x + the number of the column, which is made of the shape on the CPU and copied over."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N, M] x) => (float[N, M] y) <int64 zero = {0}, int64 one = {1}> {
        s = Shape(x)
        m = Gather(s, one)
        r = Range(zero, m, one)
        f = Cast<to = 1>(r)
        y = Add(x, f)
    }"""
    return CudaRuntime().open(ir.from_proto(onnx.parser.parse_model(text)))


def is_counted(opened, x, place=np.asarray):
    np.testing.assert_array_equal(opened.run({"x": place(x)})["y"], x + np.arange(x.shape[1], dtype=np.float32))


def test_a_recording_keeps_what_the_plan_forgets(rng):
    opened = counted()
    x = {shape: rng.normal(size=shape).astype(np.float32) for shape in [(3, 1024), (3, 1000), (3, 1008), (3, 1016)]}
    for _ in range(3):
        is_counted(opened, x[3, 1024])
    assert "replayed" in opened.description
    for _ in range(3):
        for array in x.values():  # memory of one size: what is freed for one is given to the next
            is_counted(opened, array)


def test_recordings_and_runs_of_many_shapes_do_not_disturb_each_other(rng):
    import cupy

    opened = counted()
    shapes = [(n, 64 + m) for n in range(1, 4) for m in range(20)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes * 3]
    jobs = [(x, place) for x in arrays for place in (np.asarray, cupy.asarray)]
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda job: is_counted(opened, *job), jobs))) == len(jobs)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_batches_of_any_size(rng, size):
    opened, x = CudaRuntime().open(tiny_cnn()), rng.normal(size=(size, 3, 8, 8)).astype(np.float32)
    want = compile_plan(tiny_cnn(), kernels=()).run({"x": x})
    for _ in range(3):
        for name, value in opened.run({"x": x}).items():
            np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_inputs_may_lie_in_any_layout(rng, library):
    there = importlib.import_module(library)
    opened, given = CudaRuntime().open(tiny_cnn()), rng.normal(size=(4, 3, 8, 8)).astype(np.float32)
    want, x = compile_plan(tiny_cnn(), kernels=()).run({"x": given}), there.asarray(given)
    moved = there.ascontiguousarray(x.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2)
    layouts = [x, there.asfortranarray(x), moved, x[::-1].copy()[::-1], there.repeat(x, 2, axis=3)[..., ::2]]
    for layout in [*layouts, *layouts[::-1]]:
        for name, value in opened.run({"x": layout}).items():
            np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-5)


def test_arrays_of_a_stream_of_their_own_are_waited_for(rng):
    import cupy

    opened, x = counted(), rng.normal(size=(64, 4096)).astype(np.float32)
    for _ in range(3):
        with cupy.cuda.Stream(non_blocking=True):
            there = cupy.asarray(x)
            for _ in range(200):
                there = there * np.float32(-1)
        np.testing.assert_array_equal(opened.run({"x": there})["y"], x + np.arange(4096, dtype=np.float32))
