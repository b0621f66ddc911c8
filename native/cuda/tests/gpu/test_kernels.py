"""The Plan's records of rows, quantization, 4-bit weights and recurrence against core's NumPy code."""

import attrs
import cupy
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Link, Node
from pumice_cuda.kernels import all_kernels

MS = "com.microsoft"
OPSETS = {"": 24, MS: 1}


def node_of(op, domain="", outputs=1, opset=None, **attributes):
    names = tuple(f"y{i}" for i in range(outputs))
    return Node(op_type=op, domain=domain, opset=opset or OPSETS[domain], attributes=attributes, outputs=names)


def core(node, part="forward"):
    return getattr(core_table().resolve(node.domain, node.op_type, node.opset), part)


def record(node, part="forward"):
    """What the Plan takes for a node by itself."""
    return max((k for k in all_kernels() if k.part == part and k.fits(node)), key=lambda k: k.rank)


def on_device(arrays):
    return [None if a is None else cupy.asarray(a) for a in arrays]


def agree(have, want, kernel, asked):
    """The first `asked` results are there; of the others a kernel leaves out what it likes."""
    assert len(have) == len(want) >= asked
    for i, (h, w) in enumerate(zip(have, want, strict=True)):
        if i >= asked and (h is None or w is None):
            continue
        h = cupy.asnumpy(h)
        assert h.shape == w.shape
        assert h.dtype == w.dtype
        loose = 4e-3 if w.dtype == np.float16 else 0
        np.testing.assert_allclose(
            h.astype(np.float64), w.astype(np.float64), rtol=kernel.rtol + loose, atol=kernel.atol + loose
        )


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


CASES = [
    (node_of("Softmax"), (normal(3, 5, 70),)), (node_of("Softmax", axis=1), (normal(3, 5, 70),)),
    (node_of("Softmax", opset=11), (normal(3, 5, 7),)), (node_of("LogSoftmax"), (normal(4, 9, dtype=np.float16),)),
    (node_of("LayerNormalization", outputs=3), (normal(2, 3, 65), normal(65), normal(65))),
    (node_of("LayerNormalization", axis=1), (normal(2, 3, 5), normal(3, 5))),
    (node_of("LayerNormalization"), (normal(2, 3, 5), normal(1))),
    (node_of("RMSNormalization"), (normal(4, 100), normal(100))),
    (node_of("SkipLayerNormalization", MS, outputs=4), (normal(2, 7, 64), normal(2, 7, 64) + 1, *normal(3, 64))),
    (node_of("SkipLayerNormalization", MS), (normal(2, 7, 64), normal(7, 64), normal(64))),
    (node_of("Gelu"), (normal(1000),)), (node_of("Gelu", approximate="tanh"), (normal(1000),)),
    (node_of("Gelu", MS), (normal(1000, dtype=np.float16),)), (node_of("Swish"), (normal(999),)),
    (node_of("ReduceMean"), (normal(5, 6, 7), np.array([0, 2]))),
    (node_of("ReduceMax", keepdims=0), (normal(5, 6, 7), np.array([-1]))),
    (node_of("ReduceSum", noop_with_empty_axes=1), (normal(5, 6),)), (node_of("ReduceSumSquare"), (normal(5, 600),)),
    (node_of("QuantizeLinear", axis=1), (normal(3, 4, 5), np.full(4, 0.1, np.float32), np.arange(4, dtype=np.int8))),
    (node_of("QuantizeLinear"), (normal(3, 4), np.float32(0.1), np.uint8(7))),
    (node_of("QuantizeLinear", output_dtype=3), (normal(3, 4), np.float32(0.1))),
    (node_of("DequantizeLinear", axis=0), (np.arange(20, dtype=np.uint8).reshape(2, 10), np.float32([0.5, 2]))),
    (node_of("DynamicQuantizeLinear", outputs=3), (normal(77, 3),)),
    (node_of("LSTM", hidden_size=9, direction="bidirectional", outputs=3),
     (normal(5, 2, 4), normal(2, 36, 4), normal(2, 36, 9), normal(2, 72), np.array([5, 3], np.int32))),
    (node_of("LSTM", hidden_size=9, layout=1, outputs=3),
     (normal(2, 5, 4), normal(1, 36, 4), normal(1, 36, 9), None, None, *normal(2, 2, 1, 9), normal(1, 27))),
    (node_of("GRU", hidden_size=9, linear_before_reset=1, direction="reverse", outputs=2),
     (normal(5, 2, 4), normal(1, 27, 4), normal(1, 27, 9), normal(1, 54))),
]  # fmt: skip


@pytest.mark.parametrize(("node", "arrays"), CASES, ids=[node.op_type for node, _ in CASES])
def test_a_record_computes_what_core_does(node, arrays):
    kernel, want = record(node), core(node)(node, *arrays)
    agree(kernel.run(node, *on_device(arrays)), want, kernel, len(node.outputs))
    if kernel.bind is not None:
        constants = on_device(arrays)
        call = kernel.bind(node, [None, *constants[1:]])
        for _ in range(2):
            agree(call(node, *constants), want, kernel, len(node.outputs))


def test_four_bit_weights_are_read_as_onnxruntime_stores_them(rng):
    depth, width, block = 200, 24, 32
    blocks = -(-depth // block)
    node = node_of("MatMulNBits", MS, K=depth, N=width, bits=4, block_size=block)
    codes = rng.integers(0, 256, (width, blocks, block // 2), np.uint8)
    scales = rng.uniform(0.5, 1, width * blocks).astype(np.float32)
    kernel, a = record(node), rng.standard_normal((3, 5, depth)).astype(np.float32)
    for zeros in (None, rng.integers(0, 256, (width, -(-blocks // 2)), np.uint8)):
        arrays = (a, codes, scales) if zeros is None else (a, codes, scales, zeros)
        constants = on_device(arrays)
        call = kernel.bind(node, [None, *constants[1:]])
        agree(call(node, *constants), core(node)(node, *arrays), attrs.evolve(kernel, atol=1e-2), 1)


def test_relu_before_a_quantization_is_one_pass(rng):
    relu, quantize = node_of("Relu"), node_of("QuantizeLinear")
    x, scale, zero = rng.standard_normal((40, 50)).astype(np.float32), np.float32(0.02), np.asarray(np.uint8(5))
    device_scale, device_zero = cupy.asarray(scale), cupy.asarray(zero)
    links = [Link(node=relu, constants=[None]), Link(node=quantize, constants=[None, device_scale, device_zero], at=0)]
    (run,) = [found for k in all_kernels() if k.fuse and k.fits(relu) and (found := k.fuse(links))]
    agree(
        run(cupy.asarray(x), device_scale, device_zero),
        core(quantize)(quantize, np.maximum(x, 0), scale, zero),
        record(quantize),
        1,
    )
    assert run(cupy.asarray(x), device_scale, cupy.asarray(zero)) is NotImplemented


def test_gradients_of_the_plan_are_those_of_core(rng):
    node = node_of("QuantizeLinear", axis=0)
    x, scale, zero = (
        rng.standard_normal((4, 600)).astype(np.float32),
        np.float32([0.01, 0.02, 0.03, 1]),
        np.zeros(4, np.int8),
    )
    q, dq = core(node)(node, x, scale, zero)[0], rng.standard_normal((4, 600)).astype(np.float32)
    want = core(node, "vjp")(node, (x, scale, zero), (q,), (dq,), (True, True, False))
    inputs, outputs, grads = on_device((x, scale, zero)), on_device((q,)), on_device((dq,))
    kernel = record(node, "vjp")
    agree(kernel.run(node, inputs, outputs, grads, (True, True, False)), want, attrs.evolve(kernel, atol=5e-3), 2)
