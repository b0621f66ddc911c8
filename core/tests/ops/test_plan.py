from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pumice.errors import DataError, ModelError, UnsupportedOp
from pumice.ops import Kernel, Op, OpTable, core_ops
from pumice.plan import compile_plan

CHAIN = """g (float[N, 3] x) => (float[N, 3] y)
<float[3] w = {1.0, 2.0, 3.0}> { a = Mul(x, w)  b = Relu(a)  y = Add(b, x) }"""
X = np.array([[1, -1, 2]], np.float32)


def test_a_plan_computes_the_graph(model):
    np.testing.assert_array_equal(compile_plan(model(CHAIN)).run({"x": X})["y"], [[2, -1, 8]])


def test_any_intermediate_value_can_be_asked_for_and_the_rest_is_not_computed(model):
    plan = compile_plan(model(CHAIN), ["a"])
    assert [step.node.op_type for step in plan.steps] == ["Mul"]
    np.testing.assert_array_equal(plan.run({"x": X})["a"], [[1, -2, 6]])


def test_an_unknown_output_names_the_nearest(model):
    with pytest.raises(ModelError, match="no value 'yy'; did you mean 'y'"):
        compile_plan(model(CHAIN), ["yy"])


def test_values_are_freed_after_their_last_use(model):
    plan = compile_plan(model(CHAIN))
    freed = [{plan.program.names[s] for s in step.frees} for step in plan.steps]
    assert freed == [{"w"}, {"a"}, {"b", "x"}]


def test_a_tap_sees_every_value_in_order(model):
    seen = []
    compile_plan(model(CHAIN)).run({"x": X}, tap=lambda name, array: seen.append((name, array.sum())))
    assert seen == [("a", 5), ("b", 7), ("y", 9)]


def test_feeds_may_replace_an_initializer(model):
    plan = compile_plan(model(CHAIN))
    np.testing.assert_array_equal(plan.run({"x": X, "w": np.zeros(3, np.float32)})["y"], X)
    np.testing.assert_array_equal(plan.run({"x": X})["y"], [[2, -1, 8]])


def test_constants_cannot_be_written_to(model):
    plan = compile_plan(model(CHAIN), ["w"])
    assert not plan.run({"x": X})["w"].flags.writeable


def test_threads_may_share_a_plan(model):
    plan = compile_plan(model(CHAIN))
    batches = [np.full((50, 3), i, np.float32) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: plan.run({"x": x})["y"], batches))
    for i, y in enumerate(results):
        np.testing.assert_array_equal(y, np.full((50, 3), i) * [2, 3, 4])


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({}, "input 'x' is missing from the data, which has nothing"),
        ({"x": X, "z": X}, "the model has no input 'z'"),
        ({"x": X.astype(np.float64)}, r"input 'x' must have type float32 but the data has float64; convert .*float32"),
        ({"x": X[0]}, r"input 'x' must have shape \[N, 3\] but the data has \[3\]"),
        ({"x": X[:, :2]}, r"input 'x' must have shape \[N, 3\] but the data has \[1, 2\]"),
        ({"x": [[1.0, 2.0, 3.0]]}, "input 'x' must be a NumPy array, not list"),
    ],
)
def test_wrong_feeds_are_refused_in_one_sentence(model, feeds, sentence):
    with pytest.raises(DataError, match=sentence):
        compile_plan(model(CHAIN)).run(feeds)


def test_an_operator_without_a_forward_is_named_with_domain_opset_and_node(model):
    graph = "g (float[3] x) => (float[3] y) { y = my.domain.Square(x) }"
    with pytest.raises(UnsupportedOp, match=r"operator Square of domain my\.domain, opset 1, .* \(node 'y'\)"):
        compile_plan(model(graph))


def test_a_strangers_operator_runs(model):
    square = Op("Square", domain="my.domain", forward=lambda node, x: (x * x,))
    table = OpTable.merge([*(("pumice", op) for op in core_ops()), ("stranger", square)])
    graph = "g (float[1, 3] x) => (float[1, 3] y) { a = my.domain.Square(x)  y = Neg(a) }"
    np.testing.assert_array_equal(compile_plan(model(graph), ops=table).run({"x": X})["y"], -X * X)


def test_a_node_that_cannot_be_computed_is_named_with_its_shapes(model):
    graph = "g (float[N] x, float[M] y) => (float[K] z) { z = Add(x, y) }"
    plan = compile_plan(model(graph))
    with pytest.raises(ModelError, match=r"node 'z' \(Add\) cannot be computed .*float32\[2\], float32\[3\]"):
        plan.run({"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})


def test_the_highest_ranked_kernel_that_fits_wins(model):
    def relu(rank, value, **how):
        return Kernel(op_type="Relu", rank=rank, run=lambda node, x: (np.full_like(x, value),), **how)

    kernels = [
        relu(10, 10.0),
        relu(30, 30.0, available=lambda: "no such processor"),
        relu(20, 20.0, accepts=lambda node: "it is called b" if node.outputs == ("b",) else None),
    ]
    graph = "g (float[2] x) => (float[2] a, float[2] b) { a = Relu(x)  b = Relu(x) }"
    results = compile_plan(model(graph), kernels=kernels).run({"x": np.zeros(2, np.float32)})
    assert [results["a"][0], results["b"][0]] == [20, 10]


def test_a_kernel_leaves_types_it_does_not_handle_to_numpy(model):
    wrong = Kernel(op_type="Relu", run=lambda node, x: (x + 100,))
    graph = "g (double[1] x) => (double[1] y) { y = Relu(x) }"
    assert compile_plan(model(graph), kernels=[wrong]).run({"x": np.array([-1.0])})["y"] == 0


def test_a_kernel_may_prepare_the_constants_of_its_node(model):
    seen = []

    def bind(node, constants):
        seen.append(constants)
        return lambda node, x, w: (x + 10 if w is constants[1] else x + w,)

    kernel = Kernel(op_type="Add", bind=bind, run=lambda node, x, w: (x * 0,))
    graph = "g (float[1] x) => (float[1] y) <float[1] w = {5}> { y = Add(x, w) }"
    plan = compile_plan(model(graph), kernels=[kernel])
    x = np.array([1], np.float32)
    assert [None if c is None else c[0] for c in seen[0]] == [None, 5]
    assert plan.run({"x": x})["y"] == 11
    assert plan.run({"x": x, "w": np.array([7], np.float32)})["y"] == 8


def test_branches_see_the_values_around_them(model):
    graph = """g (bool c, float[1] x) => (float[1] y) {
        k = Add(x, x)
        y = If(c) <then_branch = t () => (float[1] a) { a = Mul(k, x) },
                   else_branch = e () => (float[1] b) { b = Neg(k) }>
    }"""
    plan = compile_plan(model(graph))
    x = np.array([3], np.float32)
    assert plan.run({"c": np.array(True), "x": x})["y"] == 18
    assert plan.run({"c": np.array(False), "x": x})["y"] == -6


def test_a_loop_that_never_runs_scans_an_empty_tensor_of_the_declared_type(model):
    graph = """g (int64 n, float[2] x) => (float[2] last, float[T, 2] all) {
        last, all = Loop(n, , x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] u)
            { d = Identity(c)  t = Add(s, x)  u = Identity(t) }>
    }"""
    plan = compile_plan(model(graph))
    x = np.array([1, 2], np.float32)
    np.testing.assert_array_equal(plan.run({"n": np.array(2), "x": x})["all"], [[2, 4], [3, 6]])
    assert plan.run({"n": np.array(0), "x": x})["all"].shape == (0, 2)


def test_local_functions_are_inlined(model):
    graph = """g (float[1] x) => (float[1] y) { y = my.domain.Twice(x) }
    <domain: "my.domain", opset_import: ["" : 21]> Twice (a) => (b) { b = Add(a, a) }"""
    assert compile_plan(model(graph)).run({"x": np.array([4], np.float32)})["y"] == 8
