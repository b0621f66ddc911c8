"""Sessions without a GPU: what is folded, when a run is recorded, how recordings are shared."""

import contextlib
import functools
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.errors import DataError, PumiceError
from pumice.model import add_initializer, clone, constant
from pumice.ops.record import Kernel
from pumice.plan import compile_plan
from pumice.quantize.simulation import simulate
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_cuda import device, reference
from pumice_cuda.placing import OnDevice
from pumice_cuda.runtime import replay, session
from pumice_cuda.runtime.replay import CannotRecord
from pumice_cuda.runtime.session import CudaSession, folded
from pumice_cuda.runtime.strategy import CudaRuntime
from pumice_cuda.transfers import counting, to_device, to_host

GPU = device.Gpu(name="fake", capability=(9, 0), memory=1 << 30, multiprocessors=1)


@pytest.fixture(autouse=True)
def there(gpu, monkeypatch):
    monkeypatch.setattr(device, "gpu", lambda: GPU)


class Recording:
    """Stands in for a CUDA graph: counts, and says who is using it."""

    made = 0

    def __init__(self, plan, feeds):
        type(self).made += 1
        self.plan, self.busy = plan, threading.Lock()

    def run(self, feeds):
        assert self.busy.acquire(blocking=False), "a recording was run twice at once"
        try:
            there = {name: to_device(x) for name, x in feeds.items()}
            return {name: to_host(y) for name, y in self.plan.run(there).items()}
        finally:
            self.busy.release()


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(Recording, "made", 0)
    monkeypatch.setattr(session, "Replay", Recording)
    return Recording


def test_a_run_copies_each_input_in_and_each_output_out(recording):
    opened, (feeds,) = CudaRuntime().open(tiny_cnn()), random_feeds(1)
    for _ in range(3):
        with counting() as moved:
            opened.run(feeds)
        assert (moved.into, moved.out) == (1, 1)


def test_a_shape_is_recorded_when_it_comes_again(recording):
    opened, (feeds,) = CudaRuntime().open(tiny_cnn()), random_feeds(1)
    made = []
    for _ in range(3):
        opened.run(feeds)
        made.append(recording.made)
    assert made == [0, 1, 1]


def test_recordings_are_never_shared_and_never_more_than_allowed(recording):
    opened, batches = CudaRuntime(streams=2).open(tiny_cnn()), random_feeds(40)
    want = [compile_plan(tiny_cnn(), kernels=()).run(feeds) for feeds in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(opened.run, batches), want, strict=True):
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)
    assert 1 <= recording.made <= 2


def test_what_cannot_be_recorded_runs_operator_by_operator_and_says_so(monkeypatch):
    def refuse(plan, feeds):
        raise CannotRecord("it waits for the GPU")

    monkeypatch.setattr(session, "Replay", refuse)
    opened, (feeds,) = CudaRuntime().open(tiny_cnn()), random_feeds(1)
    one, two = opened.run(feeds), opened.run(feeds)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)
    assert opened.description.endswith("operator by operator (it waits for the GPU)")


def test_inputs_that_stay_on_the_cpu_are_not_recorded_but_read():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float8e4m3fn[N] x) => (float[N] y) { y = Cast<to = 1>(x) }""")
    opened = CudaRuntime().open(ir.from_proto(proto))
    for value in (1, 2, 3, 4):
        y = opened.run({"x": np.array([value], ml_dtypes.float8_e4m3fn)})["y"]
        np.testing.assert_array_equal(y, np.float32([value]))
    assert opened.description.endswith("operator by operator (input 'x' is of a type that stays on the CPU)")


def test_a_recording_without_memory_is_done_without(gpu, monkeypatch):
    def exhausted(feeds):
        raise MemoryError("Out of memory allocating 512 bytes")

    monkeypatch.setattr(gpu.cuda, "MemoryPool", lambda: types.SimpleNamespace(malloc=None), raising=False)
    monkeypatch.setattr(gpu.cuda, "using_allocator", lambda _: contextlib.nullcontext(), raising=False)
    plan = types.SimpleNamespace(run=exhausted)
    with pytest.raises(CannotRecord, match="the memory of the GPU does not suffice: Out of memory allocating"):
        replay.Replay(plan, {"x": np.zeros(3, np.float32)})


@pytest.mark.parametrize("what", ["open the model", r"run it on x \[2, 3, 8, 8\]"])
def test_without_memory_a_session_says_what_for(what, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError("Out of memory allocating 512 bytes")

    opened, x = CudaRuntime().open(tiny_cnn()), np.zeros((2, 3, 8, 8), np.float32)
    monkeypatch.setattr(session, "compile_plan", exhausted)
    monkeypatch.setattr(type(opened.plan), "run", exhausted)
    with pytest.raises(PumiceError, match=rf"does not suffice to {what} \(Out of memory allocating 512 bytes\): give"):
        CudaRuntime().open(tiny_cnn()) if "open" in what else opened.run({"x": x})


def test_what_a_caller_does_to_an_output_changes_no_model():
    """An output that is a constant, and lies on the CPU."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[N] x) => (float[N] y, int64[2] z) <int64[2] w = {3, 4}> { y = Relu(x) z = Identity(w) }""")
    opened = CudaRuntime(graphs=False).open(ir.from_proto(proto))
    for _ in range(3):
        z = opened.run({"x": np.ones(1, np.float32)})["z"]
        np.testing.assert_array_equal(z, [3, 4])
        z[:] = 0


def test_nobody_waits_for_the_whole_gpu_during_a_recording(gpu, monkeypatch):
    waited = threading.Event()
    monkeypatch.setattr(gpu.cuda, "Device", lambda: types.SimpleNamespace(synchronize=waited.set))
    with ThreadPoolExecutor(1) as pool:
        with replay._recording:
            done = pool.submit(replay.finish)
            assert not waited.wait(0.05)
        done.result()
    assert waited.is_set()


def test_first_runs_of_a_shape_follow_one_another(recording, monkeypatch):
    """What kernels make as they first run is finished before another stream reads it."""
    opened, batches, busy = CudaRuntime().open(tiny_cnn()), random_feeds(8), threading.Lock()
    alone = CudaSession._run_step_by_step

    def watched(self, feeds):
        assert busy.acquire(blocking=False), "two first runs at once"
        time.sleep(0.01)
        try:
            return alone(self, feeds)
        finally:
            busy.release()

    monkeypatch.setattr(CudaSession, "_run_step_by_step", watched)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(opened.run, batches))) == len(batches)


def test_threads_that_wait_for_a_recording_that_fails_go_on(monkeypatch):
    def refuse(plan, feeds):
        raise CannotRecord("it waits for the GPU")

    monkeypatch.setattr(session, "Replay", refuse)
    opened, (feeds,) = CudaRuntime(streams=1).open(tiny_cnn()), random_feeds(1)
    opened.run(feeds)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(opened.run, [feeds] * 16))) == 16


def test_integers_are_those_of_onnx_runtime(quantized):
    (feeds,) = random_feeds(1)
    got, want = CudaSession(quantized).run(feeds), simulate(quantized).run(feeds)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_weights_that_are_stored_as_codes_are_those_of_integer_kernels(quantized):
    coded = clone(quantized)
    for name, value in list(coded.graph.initializers.items()):
        held = constant(value)
        if held.dtype == np.int8 and held.size >= 16:
            table, codes = np.unique(held, return_inverse=True)
            coded.graph.initializers.pop(name)
            few, stored = (add_initializer(coded, name, array) for array in (table, codes.reshape(held.shape)))
            found = ir.node("Gather", [few, stored])
            value.replace_all_uses_with(found.outputs[0])
            coded.graph.append(found)
    coded.graph.sort()
    (feeds,) = random_feeds(1, size=2)
    assert sum(node.op_type == "Gather" for node in coded.graph) >= 2
    whole, session = CudaSession(quantized), CudaSession(coded)
    for name, want in whole.run(feeds).items():
        np.testing.assert_array_equal(session.run(feeds)[name], want)
    assert [step.node.op_type for step in session.plan.program.steps] == [
        step.node.op_type for step in whole.plan.program.steps
    ]


def test_what_depends_on_constants_alone_is_computed_once(quantized):
    plan = compile_plan(quantized, placement=OnDevice())
    less = folded(plan)
    assert len(less.steps) < len(plan.steps)
    (feeds,) = random_feeds(1)
    there = {name: to_device(x) for name, x in feeds.items()}
    for name, value in plan.run(there).items():
        np.testing.assert_array_equal(to_host(less.run(there)[name]), to_host(value))


def test_weights_of_four_bits_are_widened_once_and_not_told_of(caplog):
    """CuPy knows no such type, so the CPU does it, when the model is opened."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[N, 4] x) => (float[N, 2] y) <float[2, 2] scale = {1, 2, 3, 4}>
        { w = DequantizeLinear<axis = 0, block_size = 2>(codes, scale) y = MatMul(x, w) }""")
    model = ir.from_proto(proto)
    codes = np.arange(8).reshape(4, 2)
    held = add_initializer(model, "codes", codes.astype(ml_dtypes.uint4))
    next(iter(model.graph)).replace_input_with(0, held)
    opened, x = CudaRuntime(graphs=False).open(model), np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(opened.run({"x": x})["y"], codes * np.array([[1, 2], [1, 2], [3, 4], [3, 4]]))
    assert "on the CPU" not in opened.description
    assert not [record for record in caplog.records if record.name == "pumice.cuda"]


def test_a_wrong_input_is_refused_before_anything_runs():
    with pytest.raises(DataError, match="no_such_input"):
        CudaRuntime().open(tiny_cnn()).run({"no_such_input": np.zeros(1)})


def test_inputs_of_another_gpu_are_refused_before_a_recording_copies_them(recording, monkeypatch):
    opened, (feeds,) = CudaRuntime().open(tiny_cnn()), random_feeds(1)
    there = {name: to_device(x) for name, x in feeds.items()}
    for _ in range(3):
        opened.run(there)
    for x in there.values():
        x.device.id = 1
    monkeypatch.setattr(recording, "run", lambda *_: pytest.fail("it was copied"))
    with pytest.raises(DataError, match="lies on GPU 1 and the plan runs on GPU 0"):
        opened.run(there)


def test_without_a_gpu_the_runtime_says_why(monkeypatch):
    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem="no NVIDIA driver is installed"))
    assert CudaRuntime().available() == "no NVIDIA driver is installed"


def looking_up(entries=5, width=3):
    """y = minus the row of a table for each index."""
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.ones((entries, width), np.float32), "table")
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, width])
    nodes = [helper.make_node("Gather", ["table", "x"], ["row"]), helper.make_node("Neg", ["row"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [table])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def negated_row(links):
    whole = [link.node.op_type for link in links] == ["Gather", "Neg"]
    return (lambda table, index: (-table[index],)) if whole else None


@pytest.mark.parametrize("index", [5, -6])
@pytest.mark.parametrize("place", [np.asarray, to_device])
@pytest.mark.parametrize("fuse", [None, negated_row])
def test_an_index_outside_a_table_is_refused(index, place, fuse, monkeypatch):
    kernels = [Kernel(op_type="Gather", device="cuda", run=reference.forward, fuse=fuse)]
    monkeypatch.setattr(session, "compile_plan", functools.partial(compile_plan, kernels=kernels))
    opened, x = CudaRuntime().open(looking_up()), np.full((1, 4), -5)
    opened.run({"x": place(x)})
    x[0, 2] = index
    with pytest.raises(DataError, match=rf"input 'x' has index {index} and selects from 5 entries: .* from -5 to 4"):
        opened.run({"x": place(x)})
