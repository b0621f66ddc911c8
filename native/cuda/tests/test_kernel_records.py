"""Which nodes the records of rows, quantization, 4-bit weights and recurrence take."""

import pytest

from pumice.ops.record import Node
from pumice_cuda.kernels import all_kernels


def takers(op, domain="", opset=24, part="forward", **attributes):
    node = Node(op_type=op, domain=domain, opset=opset, attributes=attributes)
    return [k for k in all_kernels() if k.part == part and k.fits(node)]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GRU", {"linear_before_reset": 0}), ("LSTM", {"clip": 3.0}), ("QuantizeLinear", {"block_size": 32}),
        ("LSTM", {"activations": ["Relu", "Tanh", "Tanh"]}), ("Swish", {"alpha": 2.0}),
    ],
)  # fmt: skip
def test_what_a_kernel_cannot_compute_is_left_to_others(op, attributes):
    assert not takers(op, **attributes)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}), ("LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
        ("QuantizeLinear", {}), ("DequantizeLinear", {"axis": 0}), ("Softmax", {"axis": 1}), ("ReduceMax", {}),
    ],
)  # fmt: skip
def test_one_record_takes_what_it_computes(op, attributes):
    (kernel,) = takers(op, **attributes)
    assert kernel.device == "cuda"


@pytest.mark.parametrize(("bits", "block", "taken"), [(4, 32, 1), (4, 256, 1), (4, 16, 0), (8, 32, 0)])
def test_products_of_four_bits_in_blocks_of_whole_words_are_taken(bits, block, taken):
    assert len(takers("MatMulNBits", "com.microsoft", 1, bits=bits, block_size=block)) == taken
