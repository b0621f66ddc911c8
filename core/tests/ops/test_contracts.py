"""The contract, inherited: by operators whose attributes the node cases reach least, by a stranger's, and by liars."""

import numpy as np
import pytest

from pumice.ops import Kernel, Op, core_table
from pumice.ops.contract import Example, OpContract

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def core(op_type, opset=21):
    return core_table().resolve("", op_type, opset)


class TestConv(OpContract):
    op = core("Conv")

    def examples(self):
        yield Example(normal(2, 6, 9, 8), normal(4, 6, 3, 2), normal(4), pads=[1, 0, 2, 1], strides=[2, 1])
        yield Example(normal(2, 6, 9, 8), normal(9, 2, 3, 3), group=3, dilations=[2, 2], auto_pad="SAME_UPPER")
        yield Example(normal(2, 6, 9, 8), normal(12, 1, 3, 3), normal(12), group=6, pads=[1, 1, 1, 1])
        yield Example(normal(1, 3, 20), normal(5, 3, 4), strides=[3])
        yield Example(normal(1, 2, 5, 6, 7), normal(3, 2, 2, 3, 2))


class TestConvTranspose(OpContract):
    op = core("ConvTranspose")

    def examples(self):
        yield Example(normal(2, 3, 5, 4), normal(3, 2, 3, 3), normal(2), strides=[2, 3], pads=[1, 0, 0, 1])
        yield Example(normal(1, 3, 5, 4), normal(3, 2, 2, 2), strides=[3, 3])


class TestGemm(OpContract):
    op = core("Gemm")

    def examples(self):
        yield Example(normal(5, 3), normal(4, 5), normal(4), transA=1, transB=1, alpha=0.5, beta=2.0)


class TestLstm(OpContract):
    op = core("LSTM")

    def examples(self):
        weights = normal(1, 12, 4), normal(1, 12, 3), normal(1, 24)
        yield Example(normal(6, 2, 4), *weights, None, normal(1, 2, 3), normal(1, 2, 3), outputs=3, hidden_size=3)


class TestGru(OpContract):
    op = core("GRU")

    def examples(self):
        weights = normal(1, 9, 4), normal(1, 9, 3), normal(1, 18)
        yield Example(normal(6, 2, 4), *weights, outputs=2, hidden_size=3, linear_before_reset=1)
        yield Example(normal(6, 2, 4), *weights, outputs=2, hidden_size=3)


class TestQuantizeLinear(OpContract):
    op = core("QuantizeLinear")

    def examples(self):
        for kind in ("uint8", "int8", "uint16", "int16"):
            levels = np.arange(4).astype(kind)
            yield Example(normal(3, 4, 5) * 9, np.float32([0.1, 0.2, 0.3, 0.4]), levels, axis=1)
            yield Example(np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9]), np.float32(1), np.zeros((), kind))


class TestLayerNormalization(OpContract):
    op = core("LayerNormalization")

    def examples(self):
        yield Example(normal(3, 4, 5), normal(4, 5), normal(4, 5), axis=1, epsilon=1e-3)


class TestReluAndItsKernel(OpContract):
    op = core("Relu")
    kernels = (Kernel(op_type="Relu", rank=5, run=lambda node, x: (x * (x > 0),)),)

    def examples(self):
        yield Example(normal(3, 4))
        yield Example(normal(3, 4).astype(np.float64))


class TestStranger(OpContract):
    op = Op("Square", domain="my.domain", forward=lambda node, x: (x * x,))

    def examples(self):
        yield Example(normal(5))

    def expected(self, example):
        return (np.square(example.inputs[0]),)


class Liar(OpContract):
    def examples(self):
        yield Example(np.float32([-1, 2]))


def scaled(node, x):
    x *= 2
    return (x,)


@pytest.mark.parametrize(
    ("op", "kernels", "test"),
    [
        (Op("Relu", forward=lambda node, x: (x,)), (), "test_forward_agrees_with_the_reference"),
        (Op("Relu", forward=lambda node, x: (x.astype(float),)), (), "test_forward_agrees_with_the_reference"),
        (Op("Relu", forward=scaled), (), "test_forward_leaves_its_inputs_unchanged"),
        (Op("Relu", cost=lambda node, i, o: core("Relu").cost(node, [], [])), (), "test_cost_is_plausible"),
        (core("Relu"), [Kernel(op_type="Relu", run=lambda node, x: (x,))], "test_kernels_agree_with_rank_0"),
    ],
)
def test_the_contract_catches(op, kernels, test):
    liar = type("Lie", (Liar,), {"op": op, "kernels": kernels})()
    with pytest.raises(AssertionError):
        getattr(liar, test)()
