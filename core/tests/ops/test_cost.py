import math

import numpy as np
import pytest

from pumice.ops import Node, OpCost, core_table


def cost(op_type, inputs, outputs, opset=21, **attributes):
    op = core_table().resolve("", op_type, opset)
    return op.cost(Node(op_type=op_type, opset=opset, attributes=attributes), inputs, outputs)


@pytest.mark.parametrize(
    ("found", "macs", "params"),
    [
        (cost("Conv", [(2, 8, 9, 9), (16, 8, 3, 3), (16,)], [(2, 16, 9, 9)]), 2 * 16 * 81 * 8 * 9, 16 * 72 + 16),
        (cost("Conv", [(1, 8, 9, 9), (8, 1, 3, 3)], [(1, 8, 9, 9)], group=8), 8 * 81 * 9, 72),
        (cost("ConvTranspose", [(1, 4, 5, 5), (4, 6, 2, 2)], [(1, 6, 10, 10)]), 4 * 25 * 6 * 4, 96),
        (cost("MatMul", [(3, 7, 5), (5, 4)], [(3, 7, 4)]), 3 * 7 * 4 * 5, 20),
        (cost("MatMul", [(3, 2, 7, 5), (3, 2, 5, 7)], [(3, 2, 7, 7)]), 3 * 2 * 49 * 5, 0),
        (cost("Gemm", [(5, 3), (4, 5), (4,)], [(3, 4)], transA=1, transB=1), 60, 24),
        (cost("Einsum", [(2, 3, 4), (2, 4, 5)], [(2, 3, 5)], equation="bij,bjk->bik"), 2 * 3 * 4 * 5, 0),
        (cost("LSTM", [(6, 2, 3), (1, 16, 3), (1, 16, 4), (1, 32)], [(6, 1, 2, 4)]), 12 * (48 + 64), 48 + 64 + 32),
        (cost("Attention", [(1, 2, 7, 8)] * 3, [(1, 2, 7, 8)], opset=23), 2 * 7 * 7 * 8 * 2, 0),
        (cost("MaxPool", [(1, 3, 8, 8)], [(1, 3, 4, 4)], kernel_shape=[2, 2]), 3 * 16 * 4, 0),
        (cost("QLinearConv", [(1, 3, 4, 4), (), (), (5, 3, 1, 1), (), (), (), ()], [(1, 5, 4, 4)]), 5 * 16 * 3, 15),
    ],
)
def test_multiply_accumulates_and_parameters(found, macs, params):
    assert (found.macs, found.params) == (macs, params)


def test_pointwise_operators_cost_only_their_traffic():
    assert cost("Relu", [(2, 3)], [(2, 3)]) == OpCost(bytes=48)
    assert cost("Add", [(2, 3), None, (3,)], [(2, 3)]).bytes == 4 * (6 + 3 + 6)


def test_every_operator_of_a_network_has_a_cost(model):
    from pumice.plan import compile_plan

    plan = compile_plan(
        model("""g (float[1, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[1, 4] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = Relu(a)  c = GlobalAveragePool(b)  y = Flatten(c) }""")
    )
    shapes = {}
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32), "w": np.ones((4, 3, 3, 3), np.float32)}
    shapes |= {name: array.shape for name, array in feeds.items()}
    plan.run(feeds, tap=lambda name, array: shapes.update({name: array.shape}))
    names = plan.program.names
    costs = [
        step.op.cost(step.node, [shapes[names[i]] for i in step.inputs], [shapes[names[i]] for i in step.outputs])
        for step in plan.steps
    ]
    assert sum(c.macs for c in costs) == 4 * 64 * 27 + math.prod((4, 64))
