"""Chains of the Plan: which nodes a product takes along, and that the results are the reference's."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pumice.plan import compile_plan
from pumice_cpu import native
from pumice_cpu.kernels import all_kernels

RNG = np.random.default_rng(3)
KERNELS = tuple(all_kernels())


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def agree(plan, reference, feeds):
    """Within what splitting operands leaves, of the largest result."""
    have, want = plan.run(feeds)["y"], reference.run(feeds)["y"]
    largest = np.abs(want[np.isfinite(want)]).max(initial=8)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=2**-15 * largest)


def plans(shape, nodes, constants, **more):
    """The model's plan and its reference; every node reads the value before it, written `.`; `x` is the first input."""
    made, last = [], "x"
    for i, (kind, inputs, *attributes) in enumerate(nodes):
        out = "y" if i == len(nodes) - 1 else f"v{i}"
        made.append(
            helper.make_node(kind, [last if name == "." else name for name in inputs], [out], **dict(*attributes))
        )
        last = out
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in {"x": shape, **more}.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    return compile_plan(model, kernels=KERNELS), compile_plan(model, kernels=())


CONV = ("Conv", [".", "w", "b"], {"pads": [1, 1, 1, 1]})
NORM = ("BatchNormalization", [".", "scale", "shift", "mean", "var"])
IMAGE = ["N", 8, "H", 9]
CONSTANTS = {
    "w": floats(8, 8, 3, 3), "b": floats(8), "scale": floats(8), "shift": floats(8), "mean": floats(8),
    "var": floats(8) ** 2 + 0.5, "low": np.float32(-0.3), "high": np.float32(0.8), "each": floats(8, 1, 1),
    "two": np.float32(2),
}  # fmt: skip
CHAINS = {
    "normalisation and activation": [CONV, NORM, ("Relu", ["."])],
    "bounds": [CONV, ("Clip", [".", "low", "high"])],
    "a residual, then bounds": [CONV, NORM, ("Add", ["x", "."]), ("Relu", ["."])],
    "an activation, then a residual": [CONV, ("HardSwish", ["."]), ("Add", [".", "x"])],
    "factors and biases": [
        CONV,
        ("Mul", ["each", "."]),
        ("Add", [".", "each"]),
        ("Div", [".", "two"]),
        ("Tanh", ["."]),
    ],
    "a residual alone": [CONV, ("Add", [".", "x"])],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_convolution_takes_the_chain_along(chain, level):
    plan, reference = plans(IMAGE, chain, CONSTANTS)
    assert len(plan.program.fused) == 1
    for size in ((2, 8, 7, 9), (1, 8, 4, 9), (0, 8, 4, 9)):
        x = floats(*size)
        agree(plan, reference, {"x": x})


MATRIX = {"w": floats(24, 40), "u": floats(40, 24), "b": floats(40), "c": floats(24), "half": np.float32(0.5),
          "root": np.float32(2**0.5), "one": np.float32(1)}  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 24), (2, 5, 24), (0, 24)])
def test_a_matrix_product_takes_bias_activation_and_residual_along(shape, level):
    chain = [
        ("MatMul", [".", "w"]), ("Add", ["b", "."]), ("Relu", ["."]), ("MatMul", [".", "u"]), ("Add", [".", "c"]),
        ("Add", ["x", "."]),
    ]  # fmt: skip
    plan, reference = plans([None] * len(shape), chain, MATRIX)
    assert [step.node.op_type for step in plan.program.fused] == ["Relu", "Add"]
    x = floats(*shape)
    agree(plan, reference, {"x": x})


def test_a_normalisation_is_of_the_second_axis_also_behind_a_product_of_several_matrices(level):
    channels = {name: CONSTANTS[name] for name in ("scale", "shift", "mean", "var")}
    plan, reference = plans([None, 8, 5], [("MatMul", [".", "w"]), NORM], {"w": floats(5, 8), **channels})
    agree(plan, reference, {"x": floats(2, 8, 5)})


def test_a_gelu_spelt_out_is_part_of_a_chain(level):
    spelt = [
        ("MatMul", [".", "w"]), ("Add", [".", "b"]), ("Div", [".", "root"]), ("Erf", ["."]), ("Add", [".", "one"]),
        ("Mul", ["v1", "."]), ("Mul", [".", "half"]),
    ]  # fmt: skip
    plan, reference = plans([None, 24], spelt, MATRIX)
    assert len(plan.program.fused) == 1
    x = floats(9, 24)
    agree(plan, reference, {"x": x})


def test_gemm_with_all_its_attributes(level):
    gemm = ("Gemm", [".", "u", "b"], {"transB": 1, "alpha": 0.5, "beta": 2.0})
    plan, reference = plans([None, 24], [gemm, ("Sigmoid", ["."])], MATRIX)
    assert len(plan.program.fused) == 1
    x = floats(9, 24)
    agree(plan, reference, {"x": x})


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_one_step(masked, level):
    mask = [("Add", [".", "mask"])] if masked else []
    chain = [
        ("MatMul", [".", "k"]), ("Div", [".", "root"]), *mask, ("Softmax", ["."], {"axis": -1}), ("MatMul", [".", "v"])
    ]  # fmt: skip
    constants = {"root": np.float32(2), "mask": np.where(np.arange(6) < 4, 0, -1e9).astype(np.float32)}
    plan, reference = plans([2, 3, 4, 8], chain, constants, k=[2, 3, 8, 6], v=[2, 3, 6, 5])
    assert len(plan.program.fused) == 1
    agree(plan, reference, {"x": floats(2, 3, 4, 8), "k": floats(2, 3, 8, 6), "v": floats(2, 3, 6, 5)})


def test_weights_that_are_fed_are_used():
    plan, reference = plans(IMAGE, CHAINS["normalisation and activation"], CONSTANTS)
    feeds = {"x": floats(1, 8, 5, 9), "w": floats(8, 8, 3, 3), "mean": floats(8)}
    agree(plan, reference, feeds)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinities_and_nan_follow_ieee_754(value, level):
    plan, reference = plans(IMAGE, [CONV, ("Relu", ["."])], CONSTANTS)
    x = floats(1, 8, 6, 9)
    x[0, 2, 3, 4] = value
    agree(plan, reference, {"x": x})


def test_threads_do_not_change_a_bit():
    plan, _ = plans(IMAGE, CHAINS["a residual, then bounds"], CONSTANTS)
    x, results = floats(3, 8, 40, 9), []
    for threads in (1, 2, 3, 4):
        native.set_threads(threads)
        results.append(plan.run({"x": x})["y"])
    native.set_threads(0)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
