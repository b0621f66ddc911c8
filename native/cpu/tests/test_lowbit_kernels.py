"""The Plan's records for weights of few bits, against core's NumPy code."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cpu.kernels import lowbit

RECORDS = {kernel.op_type: kernel for kernel in lowbit.KERNELS}


def agree(op_type, arrays, **attributes):
    node = Node(op_type=op_type, domain="com.microsoft", attributes=attributes)
    (want,) = core_table().resolve("com.microsoft", op_type, 1).forward(node, *arrays)
    run = RECORDS[op_type].bind(node, [None, *arrays[1:]])
    for given in (arrays, [arrays[0], arrays[1].copy(), *arrays[2:]]):  # as constants, and with fed weights
        (have,) = run(node, *given)
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40)])
@pytest.mark.parametrize("per_column", [False, True])
def test_dynamic_quantization_of_the_left_operand(level, rng, shape, per_column):
    a, b = rng.standard_normal(shape).astype(np.float32), rng.integers(-128, 128, (40, 19)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, 19 if per_column else 1).astype(np.float32)
    zero = rng.integers(-9, 9, scale.shape).astype(np.int8)
    agree("DynamicQuantizeMatMul", [a, b, scale, zero, rng.standard_normal(19).astype(np.float32)])


@pytest.mark.parametrize("block", [32, 64, 128, 256])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_blocks_of_four_bits(level, rng, block, zeros):
    k, n = 256, 18
    blocks = k // block
    a, b = (
        rng.standard_normal((5, k)).astype(np.float32),
        rng.integers(0, 256, (n, blocks, block // 2)).astype(np.uint8),
    )
    points = {
        "none": None,
        "packed": rng.integers(0, 256, (n, -(-blocks // 2))).astype(np.uint8),
        "float": rng.uniform(0, 15, (n, blocks)).astype(np.float32),
    }[zeros]
    scale = rng.uniform(0.01, 0.1, n * blocks).astype(np.float32)
    agree("MatMulNBits", [a, b, scale, points], K=k, N=n, bits=4, block_size=block)


def test_what_is_left_to_core():
    def reason(**attributes):
        return RECORDS["MatMulNBits"].accepts(Node(op_type="MatMulNBits", attributes=attributes))

    assert reason(bits=8, block_size=32) == "its weights have not four bits"
    assert reason(bits=4, block_size=16) == "blocks of 16 have no kernel"
    assert reason(bits=4, block_size=128) is None
