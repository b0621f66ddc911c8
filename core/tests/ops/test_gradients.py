"""Every gradient in the table against central differences in float64, on all of ONNX's node cases and a few more."""

from collections import defaultdict

import numpy as np
import onnx_ir as ir
import pytest

from pumice.errors import UnsupportedOp
from pumice.ops import core_table
from pumice.ops.central_differences import gradient_error, in_float64
from pumice.ops.contract import TOLERANCE
from pumice.ops.node_cases import collect, value
from pumice.ops.record import Node
from pumice.plan import compile_plan

EXEMPT = {
    "QuantizeLinear": "its gradient is straight through, on purpose",
    "DequantizeLinear": "it computes in float32, too coarse for differences",
    "BitCast": "it reads the bytes of its input",
    "Dropout": "its forward draws anew for a moved input of another type",
}
EXEMPT_CASES = {
    "test_attention_24_qk_matmul_output_mode3_softmax_precision": "computes in float32",
    "test_attention_local_window_ext_cache_float16_mask": "a mask of the lowest float16 is not differentiable there",
    "test_scatter_elements_with_reduction_mul": "refused by name",
    "test_scatternd_multiply": "refused by name",
}


def steps():
    """By operator, (case name, step, its inputs) of every case that is one step with a gradient."""
    found = defaultdict(list)
    for case in collect():
        if len(case.model.graph.node) != 1 or not case.data_sets:
            continue
        try:
            plan = compile_plan(ir.from_proto(case.model))
        except UnsupportedOp:
            continue
        if len(plan.steps) == 1 and plan.steps[0].vjp is not None:
            (step,) = plan.steps
            given = dict(zip(plan.program.inputs, map(value, case.data_sets[0][0]), strict=False))
            inputs = [given.get(slot, plan.program.template[slot]) for slot in step.inputs]
            if not any(isinstance(x, list) for x in inputs):
                found[step.node.op_type].append((case.name, step, inputs))
    return found


STEPS = steps()


def moved_off_ties(step, inputs):
    """A little noise on every float that gradient flows to: the cases hold ties, where nothing has a derivative."""
    draws, wrt = np.random.default_rng(0), step.vjp.wrt
    return [
        x + 1e-3 * draws.standard_normal(x.shape) if x is not None and x.dtype == np.float64 and flows else x
        for x, flows in ((x, wrt is None or i in wrt) for i, x in enumerate(inputs))
    ]


@pytest.mark.parametrize("op_type", sorted(STEPS.keys() - EXEMPT.keys()))
def test_the_gradient_is_that_of_central_differences(op_type):
    for name, step, inputs in STEPS[op_type]:
        if name not in EXEMPT_CASES:
            error = gradient_error(step.call, step.vjp, step.node, moved_off_ties(step, in_float64(inputs)))
            assert error < TOLERANCE, f"{name}: wrong by {error:.1e} of the gradient's scale"


@pytest.mark.parametrize("reduction", ["ScatterElements", "ScatterND"])
def test_a_scatter_that_multiplies_is_refused_by_name(reduction):
    cases = [case for case in STEPS[reduction] if case[0] in EXEMPT_CASES]
    for _, step, inputs in cases:
        with pytest.raises(UnsupportedOp, match=f"{reduction}.*multiplies"):
            gradient_error(step.call, step.vjp, step.node, in_float64(inputs))
    assert cases


def recurrent(gates, directions, *, states=1, peepholes=False, lengths=None, layout=0, batch=3, time=4):
    """Inputs of a recurrent network of three features and two hidden units, every optional one given."""
    draw = np.random.default_rng(gates + directions).standard_normal
    weights = [draw((directions, gates * 2, n)) for n in (3, 2)] + [draw((directions, 2 * gates * 2))]
    lengths = None if lengths is None else np.array(lengths, np.int32)
    x, firsts = draw((time, batch, 3)), [draw((directions, batch, 2)) for _ in range(states)]
    if layout:
        x, firsts = x.swapaxes(0, 1), [s.swapaxes(0, 1) for s in firsts]
    return [x, *weights, lengths, *firsts, *([draw((directions, 6))] if peepholes else [])]


RECURRENT = {
    "LSTM with peepholes, both ways, lengths": (
        "LSTM",
        recurrent(4, 2, states=2, peepholes=True, lengths=[4, 2, 0]),
        {"direction": "bidirectional"},
    ),
    "LSTM with coupled gates, clipped": ("LSTM", recurrent(4, 1, states=2), {"input_forget": 1, "clip": 0.7}),
    "LSTM backwards, batch first": (
        "LSTM",
        recurrent(4, 1, states=2, layout=1, lengths=[3, 1, 4]),
        {"direction": "reverse", "layout": 1},
    ),
    "LSTM with other activations": (
        "LSTM",
        recurrent(4, 1, states=2),
        {"activations": ["HardSigmoid", "ScaledTanh", "Softsign"], "activation_alpha": [0.3, 1.2],
         "activation_beta": [0.4, 0.7]},
    ),
    "GRU both ways, lengths": ("GRU", recurrent(3, 2, lengths=[4, 1, 2]), {"direction": "bidirectional"}),
    "GRU, reset after the product, clipped": (
        "GRU", recurrent(3, 1, lengths=[1, 4, 4]), {"linear_before_reset": 1, "clip": 0.9}
    ),
    "GRU batch first": ("GRU", recurrent(3, 1, layout=1), {"layout": 1}),
    "RNN both ways": ("RNN", recurrent(1, 2, lengths=[2, 4, 3]), {"direction": "bidirectional"}),
    "RNN with another activation": ("RNN", recurrent(1, 1), {"activations": ["Affine"], "activation_alpha": [0.5]}),
}  # fmt: skip


@pytest.mark.parametrize("what", RECURRENT)
def test_every_form_of_a_recurrent_network_has_the_gradient_of_central_differences(what):
    op_type, inputs, attributes = RECURRENT[what]
    op = core_table().resolve("", op_type, 21)
    names = ("y", "y_h", "y_c")[: 3 if op_type == "LSTM" else 2]
    node = Node(op_type=op_type, attributes={"hidden_size": 2, **attributes}, opset=21, outputs=names)
    assert gradient_error(op.forward, op.vjp, node, inputs) < TOLERANCE


NEEDED = """
Add AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose Div Einsum Erf Exp Expand Flatten GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization LSTM LayerNormalization LeakyRelu Log LogSoftmax MatMul Max MaxPool Min Mul Neg PRelu Pad Pow RNN
ReduceMax ReduceMean ReduceSum Relu Reshape Resize Attention RMSNormalization RotaryEmbedding ScatterElements ScatterND
Sigmoid Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Upsample Where QuantizeLinear
DequantizeLinear
"""


@pytest.mark.parametrize("op_type", NEEDED.split())
def test_what_the_common_networks_are_made_of_has_a_gradient(op_type):
    assert any(op.vjp is not None for op in core_table().records["", op_type])
