"""The Plan's matrix products: the contract of kernels, and weights that are packed once but may be replaced."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pumice.ops import core_table
from pumice.ops.contract import Example
from pumice.plan import compile_plan
from pumice.testing import OpContract
from pumice_cpu.kernels.matmul import KERNELS

RNG = np.random.default_rng(5)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(dtype, *shape):
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


def known(op_type, domain=""):
    op = core_table().resolve(domain, op_type, 1 if domain else 21)
    return op, tuple(k for k in KERNELS if k.op_type == op_type)


class TestMatMul(OpContract):
    op, kernels = known("MatMul")

    def examples(self):
        for a, b in [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
                     ((2, 1, 3, 4), (3, 4, 5)), ((3, 0), (0, 5)), ((0, 4), (4, 5))]:  # fmt: skip
            yield Example(floats(*a), floats(*b))


class TestGemm(OpContract):
    op, kernels = known("Gemm")

    def examples(self):
        a, b = floats(3, 4), floats(4, 5)
        yield Example(a, b)
        yield Example(a.T.copy(), b.T.copy(), floats(5), transA=1, transB=1, alpha=0.5, beta=2.0)
        for c in [(3, 5), (3, 1), (1, 5), (1, 1), ()]:
            yield Example(a, b, np.asarray(floats(*c)), beta=0.25)


class TestMatMulInteger(OpContract):
    op, kernels = known("MatMulInteger")

    def examples(self):
        a, b = integers(np.uint8, 3, 7), integers(np.int8, 7, 5)
        yield Example(a, b)
        yield Example(a, b, np.uint8(200), np.int8(-5))
        yield Example(integers(np.uint8, 2, 3, 7), integers(np.uint8, 2, 7, 5), np.uint8(3), np.uint8(9))


class TestQLinearMatMul(OpContract):
    op, kernels = known("QLinearMatMul")

    def examples(self):
        scale = lambda: np.float32(RNG.uniform(0.01, 0.05))
        for left, right in [((3, 9), (9, 5)), ((2, 3, 9), (2, 9, 5))]:
            for dtype in (np.uint8, np.int8):
                a, b = integers(dtype, *left), integers(dtype, *right)
                yield Example(a, scale(), dtype(3), b, scale(), dtype(4), np.float32(0.3), dtype(5))


@pytest.mark.parametrize("bias", [None, np.arange(5, dtype=np.int32)])
@pytest.mark.parametrize("quantized", [False, True])
def test_the_quantized_gemm_of_onnxruntime_equals_numpys(bias, quantized):
    (kernel,) = [k for k in KERNELS if k.op_type == "QGemm"]
    op = core_table().resolve("com.microsoft", "QGemm", 1)
    node = op_node("QGemm", transB=1)
    scales = [np.float32(0.02), RNG.uniform(0.01, 0.02, 5).astype(np.float32), np.float32(0.4)]
    inputs = [
        integers(np.uint8, 4, 9),
        scales[0],
        np.uint8(7),
        integers(np.int8, 5, 9),
        scales[1],
        np.zeros(5, np.int8),
    ]
    inputs += [bias, scales[2], np.uint8(11)] if quantized else [bias]
    np.testing.assert_array_equal(kernel.run(node, *inputs)[0], op.forward(node, *inputs)[0])


@pytest.mark.parametrize("za", [np.uint8(3), np.array([1, 2, 3], np.uint8)])
@pytest.mark.parametrize("zb", [None, np.int8(-4), np.arange(5, dtype=np.int8)])
def test_zero_points_may_be_of_rows_and_columns(za, zb):
    (kernel,) = [k for k in KERNELS if k.op_type == "MatMulInteger"]
    op = core_table().resolve("", "MatMulInteger", 21)
    inputs = [integers(np.uint8, 3, 9), integers(np.int8, 9, 5), za, zb]
    node = op_node("MatMulInteger")
    np.testing.assert_array_equal(kernel.run(node, *inputs)[0], op.forward(node, *inputs)[0])


@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_fused_product_transposes_and_scales(flips):
    (kernel,) = [k for k in KERNELS if k.op_type == "FusedMatMul"]
    a, b = floats(2, 3, 4), floats(2, 4, 5)
    inputs = [x.swapaxes(-1, -2).copy() if flip else x for x, flip in zip((a, b), flips, strict=True)]
    node = op_node("FusedMatMul", transA=flips[0], transB=flips[1], alpha=0.5)
    np.testing.assert_allclose(kernel.run(node, *inputs)[0], 0.5 * (a @ b), rtol=1e-5, atol=1e-5)


def op_node(op_type, **attributes):
    from pumice.ops.record import Node

    return Node(op_type=op_type, attributes=attributes, opset=21)


# --- in a plan --------------------------------------------------------------------------------------------------------


def linear(w):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "linear",
        [value("x", 1, ["n", w.shape[0]])], [value("y", 1, ["n", w.shape[1]])], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_a_plan_packs_its_constant_once_and_sees_when_it_is_replaced():
    x, w, other = floats(6, 40), floats(40, 30), floats(40, 30)
    plan = compile_plan(linear(w), kernels=KERNELS)
    for _ in range(2):
        np.testing.assert_allclose(plan.run({"x": x})["y"], x @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plan.run({"x": x, "w": other})["y"], x @ other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plan.run({"x": x})["y"], x @ w, rtol=1e-4, atol=1e-4)


def test_matrices_that_do_not_fit_fail_by_the_name_of_their_node():
    from pumice.errors import PumiceError

    plan = compile_plan(linear(floats(4, 3)), kernels=KERNELS)
    with pytest.raises(PumiceError, match="MatMul"):
        plan.run({"x": floats(2, 4), "w": floats(5, 3)})
