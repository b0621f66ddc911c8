"""Chains that one kernel computes: which they are, and the numbers that their epilogues get."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.ops import core_table
from pumice.ops.record import Link, Node
from pumice_cuda.kernels.conv import _level_sum
from pumice_cuda.kernels.matmul import _scaled_product

F, U = np.float32, np.uint8
SCALES, ZEROS = st.floats(2**-10, 1.0, width=32).map(F), st.integers(0, 255)
LEVELS = np.stack(np.meshgrid(np.arange(256, dtype=U), np.arange(256, dtype=U)))


def node(op, domain="", **attributes):
    return Node(op_type=op, domain=domain, opset=1 if domain else 21, attributes=attributes, outputs=("y",))


def fused(x, factor, addend):
    """As the kernel's fmaf: rounded to float32 once."""
    return (x.astype(np.float64) * factor + addend).astype(F)


@settings(deadline=None, max_examples=20)
@given(
    scales=st.tuples(SCALES, SCALES, SCALES), zeros=st.tuples(*[st.integers(0, 255)] * 3), at=st.sampled_from([0, 3])
)
def test_levels_are_added_as_core_adds_them(scales, zeros, at):
    (sa, sb, sy), (za, zb, zy) = scales, map(U, zeros)
    a, b = LEVELS
    addition = node("QLinearAdd", "com.microsoft")
    (want,) = core_table().resolve("com.microsoft", "QLinearAdd", 1).forward(addition, a, sa, za, b, sb, zb, sy, zy)
    found = _level_sum(Link(node=addition, constants=[None, sa, za, None, sb, zb, sy, zy], at=at))
    own, beside = (a, b) if at == 0 else (b, a)
    first, last = (own, found.level_factor), (beside, found.residual_factor)
    if not found.residual_last:
        first, last = last, first
    total = fused(*last, fused(*first, F(found.offset)))
    np.testing.assert_array_equal(np.clip(np.rint(total), 0, 255).astype(U), want)


def test_scales_that_are_not_constant_are_not_folded():
    assert _level_sum(Link(node=node("QLinearAdd"), constants=[None, None, U(0), None, F(1), U(0), F(1), U(0)])) is None


@pytest.mark.parametrize(
    ("tail", "taken"),
    [
        ("Cast Mul", True), ("Cast Mul Add", True), ("Cast Mul Add Add Gelu", True), ("Cast Mul Gelu", True),
        ("Cast", False), ("Mul Cast", False), ("Cast Mul Gelu Add", False), ("Cast Mul Relu", False),
    ],
)  # fmt: skip
def test_a_dynamic_product_takes_what_its_epilogue_computes(gpu, tail, taken):
    weights = gpu.asarray(np.ones((4, 3), np.int8))
    links = [Link(node=node("MatMulInteger"), constants=[None, weights, None])]
    links += [Link(node=node(op, **({"to": 1} if op == "Cast" else {})), constants=[None], at=0) for op in tail.split()]
    assert (_scaled_product(links) is not None) == taken
