"""The reverse pass over a plan: whole graphs, refusals, memory, checkpointing."""

import attrs
import numpy as np
import pytest

from pumice.autograd import Tape
from pumice.errors import DataError, ModelError, UnsupportedOp

RNG = np.random.default_rng(2)

RESIDUAL = """
g (double[2,3,6,6] x, double[4,3,3,3] w, double[4,4,3,3] v, double[4] b, double[4,4] u) => (double[2,4] y) {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(h)
    k = Conv<pads=[1,1,1,1]>(r, v)
    s = Add(r, k)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = MatMul(f, u)
}"""


def residual_feeds():
    shapes = {"x": (2, 3, 6, 6), "w": (4, 3, 3, 3), "v": (4, 4, 3, 3), "b": (4,), "u": (4, 4)}
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def gradients(plan, feeds, wrt, **options):
    outputs, pull = Tape(plan, wrt, **options).forward(feeds)
    return pull({name: np.ones_like(y) for name, y in outputs.items()})


CHAIN = "g (double[4,8] x, double[8,8] w) => (double[4,8] y) {{ {body} }}"


def chain(length):
    body = "".join(f"m{i} = MatMul({f't{i - 1}' if i else 'x'}, w) t{i} = Tanh(m{i}) " for i in range(length))
    return CHAIN.format(body=f"{body} y = Identity(t{length - 1})")


def test_gradients_of_weights_and_inputs_are_those_of_central_differences(plan, numeric):
    compiled, feeds = plan(RESIDUAL), residual_feeds()
    dy = RNG.standard_normal((2, 4))
    _, pull = Tape(compiled, feeds).forward(feeds)
    for name, found in pull({"y": dy}).items():
        np.testing.assert_allclose(found, numeric(compiled, feeds, name, dy), rtol=1e-5, atol=1e-7)


def test_outputs_are_those_of_the_plan(plan):
    compiled, feeds = plan(RESIDUAL), residual_feeds()
    outputs, _ = Tape(compiled, ["w"]).forward(feeds)
    assert outputs["y"].tobytes() == compiled.run(feeds)["y"].tobytes()


def test_a_value_read_many_times_gets_the_sum(plan):
    compiled = plan("g (double[3] x) => (double[3] y) { a = Mul(x, x) y = Add(a, x) }")
    x = RNG.standard_normal(3)
    np.testing.assert_allclose(gradients(compiled, {"x": x}, ["x"])["x"], 2 * x + 1)


def test_the_gradient_of_what_the_loss_does_not_depend_on_is_zero(plan):
    compiled = plan("g (double[3] x, double[3] z) => (double[3] y) { r = Round(z) y = Add(x, r) }")
    found = gradients(compiled, {"x": np.ones(3), "z": np.ones(3)}, ["z"])
    np.testing.assert_array_equal(found["z"], np.zeros(3))


def test_no_gradient_flows_through_integers(plan):
    compiled = plan("g (double[3] x) => (double[1] y) <int64[1] axis = {0}>{ i = ArgMax<axis=0>(x) y = Gather(x, i) }")
    x = np.array([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(gradients(compiled, {"x": x}, ["x"])["x"], [0, 1, 0])


def test_an_operator_without_gradient_is_refused_with_the_way_to_it(plan):
    compiled = plan(
        "g (double[3,3] x) => (double[1] y) <int64 axis = {0}>"
        "{ s = Tanh(x) n = CumProd(s, axis) t = Exp(n) y = ReduceSum<keepdims=0>(t) }",
        opset=26,
    )
    with pytest.raises(UnsupportedOp, match=r"CumProd.* on the way output 'y' <- .*ReduceSum.* <- .*Exp.* <- it;"):
        Tape(compiled, ["x"])


def test_an_operator_without_gradient_does_not_matter_off_the_way(plan):
    compiled = plan(
        "g (double[3] x, double[3] z) => (double[3] y) <int64 axis = {0}> { n = CumProd(z, axis) y = Mul(x, n) }",
        opset=26,
    )
    found = gradients(compiled, {"x": np.ones(3), "z": np.full(3, 2.0)}, ["x"])
    np.testing.assert_array_equal(found["x"], [2, 4, 8])


def test_an_unknown_name_is_refused_with_the_nearest(plan):
    with pytest.raises(ModelError, match=r"no input or initializer 'weight'.*did you mean 'weight_1'"):
        Tape(plan("g (double[3] weight_1) => (double[3] y) { y = Exp(weight_1) }"), ["weight"])


@pytest.mark.parametrize("segments", [2, 3, 7, 100])
def test_checkpointing_changes_no_bit(plan, segments):
    compiled, feeds = plan(RESIDUAL), residual_feeds()
    whole, parts = (gradients(compiled, feeds, feeds, segments=k) for k in (1, segments))
    assert {name: g.tobytes() for name, g in whole.items()} == {name: g.tobytes() for name, g in parts.items()}


def test_more_segments_hold_less(plan):
    compiled = plan(chain(24))
    feeds = {"x": RNG.standard_normal((4, 8)), "w": RNG.standard_normal((8, 8))}
    counts = [len(Tape(compiled, ["w"], segments=k).forward(feeds)[1].residuals) for k in (1, 4)]
    assert counts[1] < counts[0] / 3


def test_residuals_are_freed_as_the_loop_passes(plan):
    import weakref

    compiled = plan(chain(6))
    feeds = {"x": RNG.standard_normal((4, 8)), "w": RNG.standard_normal((8, 8))}
    outputs, pull = Tape(compiled, ["w"]).forward(feeds)
    kept = [weakref.ref(x) for r in pull.residuals.values() for x in r.arrays()]
    pull({"y": np.ones_like(outputs["y"])})
    owned = {id(x) for x in (*feeds.values(), *outputs.values())}
    assert not [ref for ref in kept if ref() is not None and id(ref()) not in owned]


def test_a_budget_is_met_with_as_few_segments_as_possible(plan):
    compiled = plan(chain(32))
    feeds = {"x": RNG.standard_normal((4, 8)), "w": RNG.standard_normal((8, 8))}
    every = 32 * 4 * 8 * 8
    tape = Tape(compiled, ["w"], budget=every // 2)
    _, pull = tape.forward(feeds)
    assert 1 < len(pull.segments) < 8
    with pytest.raises(DataError, match="use smaller batches"):
        Tape(compiled, ["w"], budget=100).forward(feeds)


def test_training_normalises_by_the_batch_and_gives_the_running_statistics(plan, numeric):
    graph = (
        "g (double[4,2,3] x, double[2] s, double[2] b) => (double[4,2,3] y) <double[2] m = {{0.0, 0.0}}, "
        "double[2] v = {{1.0, 1.0}}> {{ y = BatchNormalization<momentum=0.5{training}>(x, s, b, m, v) }}"
    )
    feeds = {"x": 3 + RNG.standard_normal((4, 2, 3)), "s": RNG.standard_normal(2), "b": RNG.standard_normal(2)}
    inference, dy = plan(graph.format(training="")), RNG.standard_normal((4, 2, 3))
    outputs, pull = Tape(inference, feeds, training=True).forward(feeds)
    x = feeds["x"]
    mean, var = x.mean(axis=(0, 2)), x.var(axis=(0, 2))
    normal = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    np.testing.assert_allclose(outputs["y"], normal * feeds["s"][:, None] + feeds["b"][:, None])
    np.testing.assert_allclose(pull.updates["m"], mean / 2)
    np.testing.assert_allclose(pull.updates["v"], (1 + var) / 2)
    trained = plan(graph.format(training=", training_mode=1"))
    for name, found in pull({"y": dy}).items():
        np.testing.assert_allclose(found, numeric(trained, feeds, name, dy), rtol=1e-5, atol=1e-6)


def test_a_kernel_for_the_statistics_of_the_batch_runs_in_training_and_nowhere_else():
    import onnx.parser
    import onnx_ir as ir

    from pumice.autograd import with_training_kernel
    from pumice.ops import Kernel, core_table
    from pumice.plan import compile_plan

    seen = []

    def run(node, *inputs):
        seen.append(node.get("training_mode", 0))
        return core_table().resolve("", "BatchNormalization", 21).forward(node, *inputs)

    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[4, 2] x, float[2] s, float[2] b, float[2] m, float[2] v) => (float[4, 2] y) {
        y = BatchNormalization(x, s, b, m, v)
    }"""
    trains = Kernel(op_type="BatchNormalization", run=run, accepts=lambda n: None if n.get("training_mode", 0) else "")
    plan = compile_plan(ir.from_proto(onnx.parser.parse_model(text)), kernels=[trains])
    steps = tuple(with_training_kernel(step, core_table(), [trains]) for step in plan.steps)
    plan = attrs.evolve(plan, program=attrs.evolve(plan.program, steps=steps))
    feeds = {"x": np.eye(4, 2, dtype=np.float32)} | {name: np.ones(2, np.float32) for name in "sbmv"}
    plan.run(feeds)
    Tape(plan, ["s"]).forward(feeds)
    assert not seen
    Tape(plan, ["s"], training=True).forward(feeds)
    assert seen == [1]


def test_quantization_passes_the_gradient_straight_through_inside_its_range(plan):
    compiled = plan(
        "g (float[5] x) => (float[5] y) <float s = {0.5}, int8 z = {0}>"
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    x = np.float32([-100, -0.6, 0.1, 0.4, 100])
    found = gradients(compiled, {"x": x}, ["x", "s"])
    np.testing.assert_array_equal(found["x"], [0, 1, 1, 1, 0])
    levels = np.clip(np.rint(x / 0.5), -128, 127)
    inside = np.array([0, 1, 1, 1, 0])
    np.testing.assert_allclose(found["s"], (levels - inside * x / 0.5).sum(), rtol=1e-6)


def test_a_backward_kernel_takes_the_place_of_the_gradient():
    import onnx.parser
    import onnx_ir as ir

    from pumice.ops import Kernel
    from pumice.plan import compile_plan

    seen = []

    def run(node, inputs, outputs, grads, wanted):
        seen.append([getattr(x, "strides", None) for x in inputs])
        return (grads[0] * 7,)

    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[3] x) => (float[3] y) { y = Relu(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    kernel = Kernel(op_type="Relu", part="vjp", run=run)
    plan = compile_plan(model, kernels=[kernel])
    found = gradients(plan, {"x": np.ones(3, np.float32)}, ["x"])
    np.testing.assert_array_equal(found["x"], [7, 7, 7])
    assert seen == [[(0,)]], "what the operator's own gradient does not read is a ghost"


def test_what_a_kernel_leaves_out_but_the_gradient_reads_is_computed():
    import onnx.parser
    import onnx_ir as ir

    from pumice.ops import Kernel, Op
    from pumice.ops.record import Vjp
    from pumice.plan import compile_plan

    double = Op(
        "Double",
        domain="my.domain",
        forward=lambda node, x: (2 * x, np.full_like(x, 2)),
        vjp=Vjp(lambda node, inputs, outputs, grads, wanted: (grads[0] * outputs[1],), inputs=(), outputs=(1,)),
    )
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "my.domain" : 1]>'
        "g (float[3] x) => (float[3] y) { y = my.domain.Double(x) }"
    )
    for results in (lambda x: (2 * x,), lambda x: (2 * x, None)):
        kernel = Kernel(op_type="Double", domain="my.domain", run=lambda node, x, results=results: results(x))
        plan = compile_plan(ir.from_proto(onnx.parser.parse_model(text)), ops=[double], kernels=[kernel])
        np.testing.assert_array_equal(gradients(plan, {"x": np.ones(3, np.float32)}, ["x"])["x"], [2, 2, 2])
