"""Plans on a GPU that is not there: where constants lie, what is copied, what falls back."""

import logging
from concurrent.futures import ThreadPoolExecutor

import attrs
import ml_dtypes
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.autograd import Tape
from pumice.errors import DataError, ModelError
from pumice.ops import core_table
from pumice.ops.record import Kernel
from pumice.plan import compile_plan
from pumice_cuda.kernels.selection import KERNELS
from pumice_cuda.placing import OnDevice, reading
from pumice_cuda.transfers import counting, on_device, to_device, to_host


def parsed(text, opset=21):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}'))


def placed(text, **options):
    place = OnDevice()
    return compile_plan(parsed(text), ops=core_table(), placement=place, **{"kernels": (), **options}), place


CLASSIFIER = """agraph (float[N, 3, 4, 4] x, float[6, 3, 3, 3] w, float[6] b, float[5, 96] v) => (float[N, 5] y)
    <int64[2] shape = {0, 96}> {
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(c)
    f = Reshape(r, shape)
    y = Gemm<transB = 1>(f, v)
}"""


@pytest.fixture
def classifier(rng):
    model = parsed(CLASSIFIER)
    for weight in list(model.graph.inputs)[1:]:
        weight.const_value = ir.tensor(rng.normal(size=weight.shape.numpy()).astype(np.float32), name=weight.name)
        model.graph.inputs.remove(weight)
        model.graph.register_initializer(weight)
    return model


def test_weights_lie_on_the_gpu_and_shapes_on_the_cpu(gpu, classifier):
    plan = compile_plan(classifier, ops=core_table(), kernels=(), placement=OnDevice())
    held = {name: plan.program.template[slot] for name, slot in plan.initializers.items()}
    assert {name for name, value in held.items() if on_device(value)} == {"w", "b", "v"}


def test_a_run_on_arrays_of_the_gpu_copies_nothing_and_waits_for_nothing(gpu, classifier, rng):
    plan = compile_plan(classifier, ops=core_table(), kernels=(), placement=OnDevice())
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    there = to_device(x)
    with counting() as moved:
        y = plan.run({"x": there})["y"]
    assert (moved.into, moved.out, gpu.looks) == (0, 0, [])
    want = compile_plan(classifier, ops=core_table(), kernels=()).run({"x": x})["y"]
    np.testing.assert_allclose(to_host(y), want, rtol=1e-5)


def test_gradients_stay_on_the_gpu(gpu, classifier, rng):
    plan = compile_plan(classifier, ops=core_table(), kernels=(), placement=OnDevice())
    tape = Tape(plan, ["w", "b", "v"])
    x, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4, 4), (2, 5)))
    there = to_device(x), to_device(dy)
    with counting() as moved:
        grads = tape.forward({"x": there[0]})[1]({"y": there[1]})
    assert (moved.into, moved.out, gpu.looks) == (0, 0, [])
    want = Tape(compile_plan(classifier, ops=core_table(), kernels=()), ["w", "b", "v"]).forward({"x": x})[1]({"y": dy})
    for name, grad in want.items():
        np.testing.assert_allclose(to_host(grads[name]), grad, rtol=1e-4, atol=1e-5)


def test_shapes_are_computed_on_the_cpu(gpu, rng):
    plan, _ = placed("""agraph (float[N, M] x) => (float[K] y) <int64 one = {1}, int64[1] minus = {-1}> {
        s = Shape(x)
        n = Gather(s, one)
        m = Mul(n, one)
        y = Reshape(x, minus)
    }""")
    with counting() as moved:
        y = plan.run({"x": to_device(rng.normal(size=(2, 3)).astype(np.float32))})["y"]
    assert (y.shape, moved.into, moved.out) == ((6,), 1, 0)


TWICE = """agraph (float[N, M] x) => (float[N, M] y) {
    s = Shape(x)
    ones = ConstantOfShape<value = float[1] {2.0}>(s)
    y = Mul(x, ones)
}"""


def test_an_array_that_is_the_same_every_time_is_copied_once(gpu):
    plan, _ = placed(TWICE)
    x = to_device(np.ones((2, 3), np.float32))
    with counting() as moved:
        for _ in range(3):
            plan.run({"x": x})
    assert moved.into == 1
    y = plan.run({"x": to_device(np.ones((4, 3), np.float32))})["y"]
    np.testing.assert_array_equal(to_host(y), np.full((4, 3), 2, np.float32))


def test_what_a_run_reads_of_earlier_copies_can_be_kept(gpu):
    """A recording reads it again after the plan has forgotten it for another shape's."""
    plan, _ = placed(TWICE)
    x = to_device(np.ones((2, 3), np.float32))
    with reading() as first:
        plan.run({"x": x})
    with reading() as again:
        plan.run({"x": x})
    plan.run({"x": to_device(np.ones((4, 3), np.float32))})
    assert first == []
    (kept,) = again
    np.testing.assert_array_equal(to_host(kept), np.full((2, 3), 2, np.float32))


def test_every_thread_has_copies_of_its_own(gpu):
    """Another's may be freed, in the order of another's stream, while this one's kernels read it."""
    plan, _ = placed(TWICE)
    x = to_device(np.ones((2, 3), np.float32))
    with counting() as moved:
        for _ in range(2):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(plan.run, {"x": x}).result()
    assert moved.into == 2


def test_mixed_arrays_meet_on_the_gpu(gpu):
    plan, _ = placed("agraph (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")
    a, b = np.float32([1, 2]), np.float32([3, 4])
    for first, second in ((to_device(a), b), (a, to_device(b))):
        np.testing.assert_array_equal(to_host(plan.run({"a": first, "b": second})["y"]), [4, 6])


def test_arrays_of_another_gpu_are_refused_in_one_sentence(gpu):
    plan, _ = placed("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")
    x = to_device(np.ones(2, np.float32))
    x.device.id = 1
    with pytest.raises(DataError, match="lies on GPU 1 and the plan runs on GPU 0"):
        plan.run({"x": x})


def test_what_cupy_cannot_compute_runs_on_the_cpu_with_one_line(gpu, caplog):
    plan, place = placed("""agraph (float[N] x, int64[M, 1] i, float[M] u) => (float[N] y) {
        a = ScatterND<reduction = "add">(x, i, u)
        y = ScatterND<reduction = "add">(a, i, u)
    }""")
    feeds = {"x": np.float32([3, 1]), "i": np.int64([[0], [0]]), "u": np.float32([1, 1])}
    with caplog.at_level(logging.WARNING, "pumice.cuda"):
        for _ in range(2):
            y = plan.run({name: to_device(value) for name, value in feeds.items()})["y"]
    assert on_device(y)
    np.testing.assert_array_equal(to_host(y), [7, 1])
    assert list(place.fallen) == ["ScatterND"]
    assert [line.partition(":")[0] for line in caplog.messages] == ["ScatterND runs on the CPU"]


def test_what_a_kernel_refuses_is_computed_by_core_on_the_gpu(gpu):
    def refuse(node, *arrays):
        raise NotImplementedError("for newer GPUs")

    kernels = [Kernel(op_type="Relu", device="cuda", run=refuse)]
    plan, place = placed("agraph (float[N] x) => (float[N] y) { y = Relu(x) }", kernels=kernels)
    x = to_device(np.float32([-1, 2]))
    with counting() as moved:
        y = plan.run({"x": x})["y"]
    assert (moved.into, moved.out, place.fallen) == (0, 0, {})
    np.testing.assert_array_equal(to_host(y), [0, 2])


def test_a_type_without_a_gpu_stays_on_the_cpu(gpu):
    plan, _ = placed("agraph (float8e4m3fn[N] x) => (float[N] y) { y = Cast<to = 1>(x) }")
    x = np.array([-1, 2], ml_dtypes.float8_e4m3fn)
    assert to_device(x) is x
    np.testing.assert_array_equal(plan.run({"x": x})["y"], np.float32([-1, 2]))


def test_numbers_of_8_bits_come_and_go_on_the_cpu(gpu):
    """Whatever kind NumPy says they are: CuPy has none."""
    for code in (ir.DataType.FLOAT8E5M2.value, ir.DataType.FLOAT8E4M3FN.value):
        plan, place = placed(f"""agraph (float[N] x, float s) => (float[N] y) {{
            q = Cast<to = {code}>(x)
            y = DequantizeLinear(q, s)
        }}""")
        y = plan.run({"x": to_device(np.float32([-1, 2])), "s": to_device(np.array(0.5, np.float32))})["y"]
        np.testing.assert_array_equal(to_host(y), np.float32([-0.5, 1]))
        assert set(place.fallen) == {"Cast", "DequantizeLinear"}


def test_what_is_chosen_of_bfloat16_stays_bfloat16(gpu):
    text = "agraph (bool[N] c, bfloat16[N] x, bfloat16[N] z) => (bfloat16[N] y) { y = Where(c, x, z) }"
    plan, _ = placed(text, kernels=[attrs.evolve(record, device="cuda") for record in KERNELS])
    x, z = np.array([1, 2], ml_dtypes.bfloat16), np.array([3, 4], ml_dtypes.bfloat16)
    feeds = {"c": np.array([True, False]), "x": x, "z": z}
    tape = Tape(plan, ["x"])
    outputs, pull = tape.forward({name: to_device(value) for name, value in feeds.items()})
    found = [outputs["y"], pull({"y": to_device(x)})["x"]]
    assert [value.dtype for value in found] == [x.dtype, x.dtype]
    np.testing.assert_array_equal([to_host(value).tolist() for value in found], [[1, 4], [1, 0]])


def test_a_mistake_of_the_model_is_reported_as_on_the_cpu(gpu):
    plan, place = placed("agraph (float[N] a, float[M] b) => (float[K] y) { y = Add(a, b) }")
    with pytest.raises(ModelError, match=r"cannot be computed on inputs"):
        plan.run({"a": to_device(np.ones(2, np.float32)), "b": to_device(np.ones(3, np.float32))})
    assert place.fallen == {}


def test_kernels_of_the_gpu_get_its_arrays_and_those_of_the_cpu_are_left_alone(gpu):
    seen = []

    def run(node, x):
        seen.append(on_device(x))
        return (x * 2,)

    def unwanted(node, x):
        raise AssertionError("a kernel of the CPU was called")

    kernels = (
        Kernel(op_type="Relu", device="cuda", run=run),
        Kernel(op_type="Relu", rank=99, run=unwanted),
    )
    plan, _ = placed("agraph (float[N] x) => (float[N] y) { y = Relu(x) }", kernels=kernels)
    plan.run({"x": to_device(np.ones(2, np.float32))})
    plan.run({"x": np.ones(2, np.float32)})
    assert seen == [True]


def test_a_condition_is_read_and_its_branch_runs_on_the_gpu(gpu):
    plan, _ = placed("""agraph (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = one () => (float[N] a) { a = Relu(x) },
                    else_branch = other () => (float[N] b) { b = Neg(x) }>
    }""")
    for condition, want in ((True, [0, 2]), (False, [1, -2])):
        y = plan.run({"x": to_device(np.float32([-1, 2])), "c": np.array(condition)})["y"]
        assert on_device(y)
        np.testing.assert_array_equal(to_host(y), want)


def test_integers_that_shapes_are_made_of_stay_on_the_cpu(gpu, rng):
    """Of 32 bits too, as some exporters write them; those that data are made of do not."""
    plan, _ = placed("""agraph (float[N, 4] x, int32[2] i) => (float[A, B, C] y, int32[2] j)
        <int64[1] zero = {0}, int64[1] one = {1}, int32[2] two = {2, 2}, int32[2] data = {5, 6}> {
            shape = Shape(x) rows = Slice(shape, zero, one) narrow = Cast<to = 6>(rows)
            all = Concat<axis = 0>(narrow, two) wide = Cast<to = 7>(all) y = Reshape(x, wide) j = Add(i, data) }""")
    x, i = rng.standard_normal((3, 4)).astype(np.float32), np.int32([1, 2])
    there = {"x": to_device(x), "i": to_device(i)}
    with counting() as moved:
        found = plan.run(there)
    assert (moved.into, moved.out) == (0, 0)
    np.testing.assert_array_equal(to_host(found["y"]), x.reshape(3, 2, 2))
    np.testing.assert_array_equal(to_host(found["j"]), [6, 8])
    template = dict(zip(plan.program.names, plan.program.template, strict=True))
    assert [on_device(template[name]) for name in ("two", "data")] == [False, True]
