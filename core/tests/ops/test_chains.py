"""Chains and composites: what one kernel may take over, and what must stay."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pumice.ops.record import Kernel
from pumice.plan import compile_plan

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def model(*nodes, outputs=("y",), **initializers):
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in initializers.items()]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **dict(node[3:])) for node in nodes], "g", values, results, tensors
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


ABS, NEG, EXP = ("Abs", ["x"], ["a"]), ("Neg", ["a"], ["b"]), ("Exp", ["b"], ["y"])


def taking(*op_types, result=None, seen=None):
    """A kernel for chains of exactly these operators, whose result says that it ran."""

    def fuse(links):
        if [link.node.op_type for link in links] != list(op_types):
            return None
        return lambda *arrays: result if result is not None else (np.full_like(arrays[0], 7),)

    return Kernel(op_type=op_types[0], run=lambda node, x: (np.abs(x),), fuse=fuse)


def kinds(plan):
    return [step.node.op_type for step in plan.program.fused]


def test_a_kernel_computes_a_whole_chain():
    plan = compile_plan(model(ABS, NEG, EXP), kernels=[taking("Abs", "Neg")])
    assert kinds(plan) == ["Neg", "Exp"]
    np.testing.assert_allclose(plan.run({"x": X})["y"], np.exp(7), rtol=1e-6)


def test_the_longest_chain_wins():
    plan = compile_plan(model(ABS, NEG, EXP), kernels=[taking("Abs", "Neg", "Exp"), taking("Abs", "Neg")])
    assert kinds(plan) == ["Exp"]


@pytest.mark.parametrize("outputs", [("y", "a"), ("y", "b")])
def test_a_value_that_is_asked_for_does_not_vanish(outputs):
    plan = compile_plan(model(ABS, NEG, EXP, outputs=outputs), kernels=[taking("Abs", "Neg", "Exp")])
    results = plan.run({"x": X})
    np.testing.assert_array_equal(results["y"], np.exp(-np.abs(X)))
    assert results[outputs[1]].shape == X.shape


def test_a_value_with_two_readers_does_not_vanish():
    both = ("Add", ["a", "b"], ["y"])
    plan = compile_plan(model(ABS, NEG, both), kernels=[taking("Abs", "Neg")])
    np.testing.assert_array_equal(plan.run({"x": X})["y"], 0)


def test_taps_see_every_value_one_by_one():
    plan, seen = compile_plan(model(ABS, NEG, EXP), kernels=[taking("Abs", "Neg", "Exp")]), []
    plan.run({"x": X}, tap=lambda name, array: seen.append(name))
    assert seen == ["a", "b", "y"]


def test_what_the_kernel_hands_back_is_computed_one_by_one():
    plan = compile_plan(model(ABS, NEG, EXP), kernels=[taking("Abs", "Neg", "Exp", result=NotImplemented)])
    np.testing.assert_array_equal(plan.run({"x": X})["y"], np.exp(-np.abs(X)))


def test_other_types_are_computed_one_by_one():
    plan = compile_plan(model(ABS, NEG, EXP), kernels=[taking("Abs", "Neg", "Exp")])
    slots = plan.program.run([(plan.program.inputs[0], X.astype(np.float64))])
    np.testing.assert_array_equal(slots[0], np.exp(-np.abs(X.astype(np.float64))))


def test_a_chain_runs_where_its_last_node_stood():
    """The second operand of the Add is computed between the two."""
    nodes = [ABS, ("Cos", ["x"], ["c"]), ("Add", ["a", "c"], ["y"])]
    kernel = Kernel(
        op_type="Abs",
        run=lambda node, x: (np.abs(x),),
        fuse=lambda links: (lambda x, c: (np.abs(x) + c,)) if links[-1].node.op_type == "Add" else None,
    )
    plan = compile_plan(model(*nodes), kernels=[kernel])
    assert kinds(plan) == ["Cos", "Add"]
    np.testing.assert_array_equal(plan.run({"x": X})["y"], np.abs(X) + np.cos(X))


# --- composites -------------------------------------------------------------------------------------------------------

MARKED = [Kernel(op_type=name, run=lambda node, x, *rest: (np.full_like(x, 7),)) for name in
          ("Gelu", "Swish", "LayerNormalization")]  # fmt: skip
GELU = {
    "root": np.float32(math.sqrt(2)),
    "inverse": np.float32(math.sqrt(0.5)),
    "one": np.float32(1),
    "half": np.float32(0.5),
}


def gelu(scaled, factors):
    head = [scaled, ("Erf", ["s"], ["e"]), ("Add", ["one", "e"], ["p"])]
    return [*head, *factors]


@pytest.mark.parametrize("scaled", [("Div", ["x", "root"], ["s"]), ("Mul", ["inverse", "x"], ["s"])])
@pytest.mark.parametrize("factors", [
    [("Mul", ["x", "p"], ["m"]), ("Mul", ["m", "half"], ["y"])],
    [("Mul", ["half", "x"], ["m"]), ("Mul", ["p", "m"], ["y"])],
    [("Mul", ["p", "half"], ["m"]), ("Mul", ["x", "m"], ["y"])],
])  # fmt: skip
def test_gelu_is_recognised_however_it_is_spelt(scaled, factors):
    plan = compile_plan(model(*gelu(scaled, factors), **GELU), kernels=MARKED)
    assert kinds(plan) == ["Gelu"]


def test_a_gelu_with_another_constant_is_none():
    nodes = gelu(("Div", ["x", "root"], ["s"]), [("Mul", ["x", "p"], ["m"]), ("Mul", ["m", "half"], ["y"])])
    plan = compile_plan(model(*nodes, **{**GELU, "root": np.float32(1.5)}), kernels=MARKED)
    assert "Gelu" not in kinds(plan)


def test_nothing_is_recognised_for_the_reference():
    nodes = [("Sigmoid", ["x"], ["s"]), ("Mul", ["s", "x"], ["y"])]
    assert kinds(compile_plan(model(*nodes), kernels=())) == ["Sigmoid", "Mul"]
    assert kinds(compile_plan(model(*nodes), kernels=MARKED)) == ["Swish"]


def norm(square, axes=-1):
    return [
        ("ReduceMean", ["x", "last"], ["m"]), ("Sub", ["x", "m"], ["c"]), square, ("ReduceMean", ["q", "last"], ["v"]),
        ("Add", ["v", "epsilon"], ["e"]), ("Sqrt", ["e"], ["r"]), ("Div", ["c", "r"], ["d"]),
        ("Mul", ["d", "w"], ["g"]), ("Add", ["g", "b"], ["y"]),
    ]  # fmt: skip


@pytest.mark.parametrize("square", [("Pow", ["c", "two"], ["q"]), ("Mul", ["c", "c"], ["q"])])
@pytest.mark.parametrize(("axis", "found"), [(-1, True), (0, False)])
def test_layer_normalisation_is_recognised_over_the_last_axis(square, axis, found):
    constants = {
        "last": np.array([axis]), "epsilon": np.float32(1e-6), "two": np.float32(2), "w": np.ones(4, np.float32),
        "b": np.zeros(4, np.float32),
    }  # fmt: skip
    plan = compile_plan(model(*norm(square), **constants), kernels=MARKED)
    assert (kinds(plan) == ["LayerNormalization"]) == found
    if found:
        assert plan.program.fused[0].node.get("epsilon") == pytest.approx(1e-6)
