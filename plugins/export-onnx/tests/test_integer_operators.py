"""The integer operators against what ONNX Runtime makes of Q and DQ: the same integers, in every pattern."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.ledger import Ledger
from pumice.measure.runtimes import pick_runtime
from pumice.model import infer_shapes
from pumice.plan import compile_plan
from pumice.quantize.fusion import fused
from pumice.quantize.simulation import compare_integers, integer_tensors

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
every (float[N,4,8,8] x) => (float[N,5] gemm, float[N,3] matmul, float[N,5] gemm_real, float[N,3] matmul_real) {
    x_q = QuantizeLinear (x, x_s, x_z)
    x_d = DequantizeLinear (x_q, x_s, x_z)
    w1_d = DequantizeLinear <axis=0> (w1, w1_s, w1_z)
    b1_d = DequantizeLinear <axis=0> (b1, b1_s, b1_z)
    conv = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x_d, w1_d, b1_d)
    relu = Relu (conv)
    relu_q = QuantizeLinear (relu, relu_s, zero)
    relu_d = DequantizeLinear (relu_q, relu_s, zero)
    w2_d = DequantizeLinear <axis=0> (w2, w2_s, w2_z)
    depthwise = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (relu_d, w2_d)
    depthwise_q = QuantizeLinear (depthwise, depthwise_s, depthwise_z)
    depthwise_d = DequantizeLinear (depthwise_q, depthwise_s, depthwise_z)
    sum = Add (relu_d, depthwise_d)
    sum_q = QuantizeLinear (sum, sum_s, sum_z)
    sum_d = DequantizeLinear (sum_q, sum_s, sum_z)
    product = Mul (relu_d, depthwise_d)
    product_q = QuantizeLinear (product, product_s, product_z)
    product_d = DequantizeLinear (product_q, product_s, product_z)
    joined = Concat <axis=1> (sum_d, product_d)
    joined_q = QuantizeLinear (joined, sum_s, sum_z)
    joined_d = DequantizeLinear (joined_q, sum_s, sum_z)
    largest = MaxPool <kernel_shape=[2,2], strides=[2,2]> (joined_d)
    largest_q = QuantizeLinear (largest, sum_s, sum_z)
    largest_d = DequantizeLinear (largest_q, sum_s, sum_z)
    mean = AveragePool <kernel_shape=[2,2], strides=[2,2]> (largest_d)
    mean_q = QuantizeLinear (mean, depthwise_s, depthwise_z)
    mean_d = DequantizeLinear (mean_q, depthwise_s, depthwise_z)
    whole = GlobalAveragePool (mean_d)
    whole_q = QuantizeLinear (whole, whole_s, whole_z)
    whole_d = DequantizeLinear (whole_q, whole_s, whole_z)
    flat = Flatten (whole_d)
    flat_q = QuantizeLinear (flat, whole_s, whole_z)
    flat_d = DequantizeLinear (flat_q, whole_s, whole_z)
    w3_d = DequantizeLinear <axis=0> (w3, w3_s, w3_z)
    b3_d = DequantizeLinear <axis=0> (b3, b3_s, b3_z)
    h = Gemm <transB=1> (flat_d, w3_d, b3_d)
    h_q = QuantizeLinear (h, h_s, h_z)
    gemm = DequantizeLinear (h_q, h_s, h_z)
    w4_d = DequantizeLinear <axis=1> (w4, w4_s, w4_z)
    k = MatMul (flat_d, w4_d)
    k_q = QuantizeLinear (k, h_s, h_z)
    matmul = DequantizeLinear (k_q, h_s, h_z)
    gemm_real = Gemm <transB=1> (flat_d, w3_d, b3_d)
    matmul_real = MatMul (flat_d, w4_d)
}"""
ACTIVATIONS = {
    "x": (0.02, 131), "relu": (0.023, 0), "depthwise": (0.031, 120), "sum": (0.04, 77), "product": (0.05, 133),
    "whole": (0.011, 101), "h": (0.013, 126),
}  # fmt: skip
WEIGHTS = {"w1": (8, 4, 3, 3), "w2": (8, 1, 3, 3), "w3": (5, 16), "w4": (16, 3)}


def every_pattern() -> ir.Model:
    """Every pattern that has an integer operator; input `x` of shape (N, 4, 8, 8)."""
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants().items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return infer_shapes(ir.from_proto(proto))


def constants():
    rng = np.random.default_rng(0)
    found = {"zero": np.array(0, np.uint8)}
    for name, (scale, zero) in ACTIVATIONS.items():
        found |= {f"{name}_s": np.array(scale, np.float32), f"{name}_z": np.array(zero, np.uint8)}
    for name, shape in WEIGHTS.items():
        channels = shape[1] if name == "w4" else shape[0]
        found[name] = rng.integers(-127, 128, shape).astype(np.int8)
        found[f"{name}_s"] = rng.uniform(0.001, 0.004, channels).astype(np.float32)
        found[f"{name}_z"] = np.zeros(channels, np.int8)
    for bias, weight, data in (("b1", "w1", "x"), ("b3", "w3", "whole")):
        channels = WEIGHTS[weight][0]
        found[bias] = rng.integers(-3000, 3000, channels).astype(np.int32)
        found[f"{bias}_s"] = found[f"{weight}_s"] * found[f"{data}_s"]
        found[f"{bias}_z"] = np.zeros(channels, np.int32)
    return {name: array for name, array in found.items() if name != "relu_z"}


def inputs(count):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def runtime():
    return pick_runtime("ort")


def test_every_pattern_becomes_its_integer_operator():
    ledger = Ledger()
    result = fused(every_pattern(), ledger)
    assert not ledger.of("export", "declined")
    assert {node.op_type for node in result.graph} == {
        "QuantizeLinear", "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "MaxPool", "QLinearAveragePool",
        "QLinearGlobalAveragePool", "Flatten", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DequantizeLinear",
    }  # fmt: skip


def test_onnx_runtime_fuses_the_same_operators(runtime):
    ours = {node.op_type for node in fused(every_pattern()).graph}
    theirs = set(runtime.optimized_ops(every_pattern()))
    assert {name for name in theirs if "Q" in name or "Integer" in name} <= ours | {"DequantizeLinear"}


def test_integer_operators_compute_the_same_as_q_and_dq(runtime):
    model = every_pattern()
    names = [*integer_tensors(model), *(str(value.name) for value in model.graph.outputs)]
    one, two = (runtime.open(form, outputs=names) for form in (model, fused(model)))
    for feeds in inputs(10):
        expected, found = one.run(feeds), two.run(feeds)
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_the_plan_computes_the_integer_operators_as_onnx_runtime_does(runtime):
    model = fused(every_pattern())
    names = [*integer_tensors(model), "gemm", "matmul", "gemm_real", "matmul_real"]
    session, plan = runtime.open(model, outputs=names), compile_plan(model, names)
    for feeds in inputs(10):
        expected, found = session.run(feeds), plan.run(feeds)
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_simulated_integers_equal_those_of_onnx_runtime_bit_for_bit(runtime):
    differences = compare_integers(every_pattern(), inputs(10), runtime)
    assert len(differences) == 12
    assert all(found.elements for found in differences)
    assert {found.tensor: found.steps for found in differences if found.steps} == {}
