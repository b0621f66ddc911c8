"""The Plan's convolutions and pools: the contract of kernels, and weights that are packed once but may be replaced."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pumice.ops import core_table
from pumice.ops.contract import Example
from pumice.ops.record import Op
from pumice.plan import compile_plan
from pumice.testing import OpContract
from pumice_cpu.kernels.conv import KERNELS as CONVOLUTIONS
from pumice_cpu.kernels.pooling import KERNELS as POOLS

RNG = np.random.default_rng(5)
GEOMETRIES = (
    {},
    {"pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [1, 0, 0, 2]},
    {"dilations": [2, 1], "auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(dtype, *shape):
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


def of(op_type, kernels):
    """An empty record, which stands for core's, and the kernels for it."""
    return Op(op_type), tuple(k for k in kernels if k.op_type == op_type)


def known(op_type, kernels):
    return core_table().resolve("", op_type, 21), *(k for k in kernels if k.op_type == op_type)


class TestConv(OpContract):
    op, kernels = of("Conv", CONVOLUTIONS)

    def examples(self):
        for attributes in GEOMETRIES:
            yield Example(floats(2, 4, 9, 8), floats(6, 4, 3, 2), floats(6), **attributes)
            yield Example(floats(2, 4, 9, 8), floats(8, 1, 3, 2), group=4, **attributes)
        yield Example(floats(1, 3, 11), floats(4, 3, 3), pads=[1, 1])
        yield Example(floats(1, 3, 5, 4, 6), floats(4, 3, 2, 3, 2), strides=[1, 2, 1])
        yield Example(floats(1, 2, 3, 3, 3, 3), floats(2, 2, 2, 2, 2, 2))


class TestConvTranspose(OpContract):
    op, kernels = of("ConvTranspose", CONVOLUTIONS)

    def examples(self):
        x, w, b = floats(2, 4, 5, 6), floats(4, 3, 3, 2), floats(3)
        yield Example(x, w, b)
        yield Example(x, w, b, strides=[2, 3], pads=[1, 0, 0, 1])
        yield Example(x, w, b, strides=[3, 2], output_padding=[2, 1])
        yield Example(x, w, b, strides=[2, 2], auto_pad="SAME_UPPER")
        yield Example(x, w, b, strides=[2, 2], output_shape=[11, 12])
        yield Example(x, w, dilations=[2, 2], pads=[1, 1, 1, 1])
        yield Example(floats(2, 4, 5, 6), floats(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1])
        yield Example(floats(2, 4, 5, 6), floats(4, 3, 3, 3), group=2, strides=[4, 4])
        yield Example(floats(1, 3, 7), floats(3, 2, 4), strides=[2])


class TestConvInteger(OpContract):
    op, kernels = of("ConvInteger", CONVOLUTIONS)

    def examples(self):
        for attributes in GEOMETRIES[:3]:
            yield Example(integers(np.uint8, 2, 4, 9, 8), integers(np.uint8, 6, 4, 3, 2), **attributes)
            yield Example(
                integers(np.uint8, 2, 4, 9, 8), integers(np.uint8, 6, 2, 3, 2), np.uint8(9), np.uint8(200), group=2,
                **attributes,
            )  # fmt: skip


class TestQLinearConv(OpContract):
    op, kernels = of("QLinearConv", CONVOLUTIONS)

    def examples(self):
        for dtype in (np.uint8, np.int8):
            for scale in (np.float32(0.02), RNG.uniform(0.01, 0.03, 6).astype(np.float32)):
                zero = np.zeros(np.shape(scale), np.int8)
                yield Example(
                    integers(dtype, 2, 4, 9, 8), np.float32(0.05), dtype(7), integers(np.int8, 6, 4, 3, 2), scale, zero,
                    np.float32(0.9), dtype(3), RNG.integers(-500, 500, 6).astype(np.int32), pads=[1, 1, 1, 1],
                )  # fmt: skip


class TestMaxPool(OpContract):
    op, kernels = of("MaxPool", POOLS)

    def examples(self):
        for x in (floats(2, 3, 9, 8), integers(np.uint8, 2, 3, 9, 8), integers(np.int8, 2, 3, 9, 8)):
            yield Example(x, kernel_shape=[3, 3])
            yield Example(x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
            yield Example(x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[1, 2])
        yield Example(floats(1, 2, 11), kernel_shape=[4], strides=[3])


class TestAveragePool(OpContract):
    op, kernels = of("AveragePool", POOLS)

    def examples(self):
        x = floats(2, 3, 9, 8)
        yield Example(x, kernel_shape=[3, 3], strides=[2, 2])
        for count in (0, 1):
            yield Example(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=count)
            yield Example(x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, count_include_pad=count)


class TestGlobalAveragePool(OpContract):
    op, kernels = of("GlobalAveragePool", POOLS)

    def examples(self):
        yield Example(floats(2, 3, 9, 8))
        yield Example(floats(2, 3, 70))


class TestGlobalMaxPool(OpContract):
    op, kernels = of("GlobalMaxPool", POOLS)

    def examples(self):
        yield Example(floats(2, 3, 9, 8))
        yield Example(-np.abs(floats(2, 3, 70)))


def test_an_empty_batch_gives_an_empty_result():
    _op, kernel, _ = known("Conv", CONVOLUTIONS)
    node = TestConv().node(Example(floats(1)))
    assert kernel.run(node, floats(0, 3, 5, 5), floats(4, 3, 3, 3))[0].shape == (0, 4, 3, 3)


@pytest.mark.parametrize("attributes", GEOMETRIES)
def test_an_empty_batch_has_gradients_of_zero(attributes):
    gradient = next(k for k in CONVOLUTIONS if k.op_type == "Conv" and k.part == "vjp")
    x, w = floats(0, 4, 9, 8), floats(6, 4, 3, 2)
    node = TestConv().node(Example(x, w, **attributes))
    (y,) = known("Conv", CONVOLUTIONS)[1].run(node, x, w)
    dx, dw = gradient.run(node, (x, w), (y,), (y,), (True, True))
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros_like(w))


# --- in a plan --------------------------------------------------------------------------------------------------------


def network(w, size):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "conv", [value("x", 1, ["n", w.shape[1], *size])],
        [value("y", 1, ["n", w.shape[0], "h", "w"])], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_a_plan_packs_its_weights_once_for_a_size_and_sees_when_they_are_replaced():
    w, other = floats(6, 4, 3, 3), floats(6, 4, 3, 3)
    model = network(w, ["h", "w"])
    plan, truth = compile_plan(model, kernels=CONVOLUTIONS), compile_plan(model)
    for size in ((9, 9), (12, 7), (9, 9)):
        for feeds in ({}, {"w": other}, {}):
            feeds = {"x": floats(2, 4, *size), **feeds}
            np.testing.assert_allclose(plan.run(feeds)["y"], truth.run(feeds)["y"], rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_fit_fail_by_the_name_of_their_node():
    from pumice.errors import PumiceError

    plan = compile_plan(network(floats(6, 4, 3, 3), [9, 9]), kernels=CONVOLUTIONS)
    with pytest.raises(PumiceError, match="Conv"):
        plan.run({"x": floats(1, 4, 9, 9), "w": floats(6, 5, 3, 3)})


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
def test_pools_agree_at_every_level(level, op_type):
    op, kernel = known(op_type, POOLS)
    for examples in (TestMaxPool, TestAveragePool, TestGlobalAveragePool):
        for example in examples().examples():
            if examples().op.op_type != op_type and not op_type.startswith("Global"):
                continue
            if example.inputs[0].dtype.name in kernel.dtypes:
                node = examples().node(example)
                (have,), (want,) = kernel.run(node, *example.inputs), op.forward(node, *example.inputs)
                np.testing.assert_allclose(have, want, rtol=kernel.rtol, atol=kernel.atol)


def test_nan_wins_a_maximum(level):
    x = floats(1, 2, 20, 20)
    x[0, 0, 4, 5] = np.nan
    for op_type, attributes in (("MaxPool", {"kernel_shape": [3, 3]}), ("GlobalMaxPool", {})):
        op, kernel = known(op_type, POOLS)
        node = TestMaxPool().node(Example(x, **attributes))
        np.testing.assert_array_equal(kernel.run(node, x)[0], op.forward(node, x)[0])
