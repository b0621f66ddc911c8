"""Chains that one kernel computes: which they are, and the numbers that their epilogues get."""

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.ops import core_table
from pumice.ops.record import Link, Node
from pumice_cuda.kernels import _on_host
from pumice_cuda.kernels.attention import _attention
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


SPELT = "MatMul Div Softmax MatMul"
JOINED = f"{SPELT} Transpose Reshape Mul DynamicQuantizeLinear"


def attention_chain(operators, perm=(0, 2, 1, 3)):
    attributes = {"Transpose": {"perm": list(perm)}, "Softmax": {"axis": -1}}
    known = {"Div": [None, F(8)], "Reshape": [None, np.array([0, 0, 768])], "MatMul": [None] * 2, "Mul": [None] * 2}
    links = [
        Link(node=node(op, **attributes.get(op, {})), constants=known.get(op, [None]), at=0) for op in operators.split()
    ]
    return [attrs.evolve(links[0], at=-1), *links[1:]]


@pytest.mark.parametrize(
    ("operators", "taken"),
    [
        (SPELT, True), (JOINED, True), (JOINED.replace("Reshape Mul", "Reshape"), True),
        (JOINED.replace("Softmax", "Add Softmax"), True), (JOINED.replace("Mul Dynamic", "Mul Relu Dynamic"), False),
        ("MatMul Softmax MatMul", True), (f"{SPELT} Transpose", False), (f"{SPELT} DynamicQuantizeLinear", False),
        (SPELT.replace("Softmax", "Gelu"), False),
    ],
)  # fmt: skip
def test_attention_is_taken_with_what_its_kernel_computes(operators, taken):
    assert (_attention(attention_chain(operators)) is not None) == taken


def test_heads_in_another_order_are_not_taken():
    assert _attention(attention_chain(JOINED, perm=(0, 1, 2, 3))) is None


def test_a_shape_in_a_chain_stays_on_the_cpu():
    assert _on_host(attention_chain(JOINED)) == (4,)  # after queries, keys, what divides, values
