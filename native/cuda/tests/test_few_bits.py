"""Weights of 4 bits in blocks: which products read them as codes, and that these stand for the same numbers."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pumice.model import constant
from pumice.plan import compile_plan
from pumice_cuda import device
from pumice_cuda.runtime.few_bits import multiply_in_blocks

K, N = 80, 6


@pytest.fixture(autouse=True)
def there(gpu, monkeypatch):
    found = device.Gpu(name="fake", capability=(9, 0), memory=1 << 30, multiprocessors=1)
    monkeypatch.setattr(device, "gpu", lambda: found)


def network(rng, kind=ml_dtypes.uint4, block=32, zeros=True, axis=0, readers=("MatMul",), **attributes):
    """y = x W [+ b] with W in blocks; a second reader adds its own result."""
    count = -(-K // block)
    info = np.iinfo(np.uint8)
    arrays = {
        "codes": (rng.integers(0, info.max, (K, N)) % 16 - (8 if kind is ml_dtypes.int4 else 0)).astype(kind),
        "scale": rng.uniform(0.1, 1, (count, N)).astype(np.float32),
        "zero": (rng.integers(0, 16, (count, N)) - (8 if kind is ml_dtypes.int4 else 0)).astype(kind),
        "bias": rng.standard_normal(N).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["codes", "scale", *(["zero"] if zeros else [])], ["w"], axis=axis, block_size=block
        ),
        *(
            helper.make_node(op, ["x", "w", *(["bias"] if op == "Gemm" else [])], [f"y{i}"], **attributes)
            for i, op in enumerate(readers)
        ),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["M", K])
    outputs = [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["M", N]) for i in range(len(readers))]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, held)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("kind", [ml_dtypes.uint4, ml_dtypes.int4])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("readers", [("MatMul",), ("Gemm",), ("MatMul", "Gemm")])
def test_products_read_codes_and_compute_the_same(rng, kind, zeros, readers):
    model = network(rng, kind=kind, zeros=zeros, readers=readers)
    x = rng.standard_normal((3, K)).astype(np.float32)
    want = compile_plan(model, kernels=()).run({"x": x})
    multiply_in_blocks(model)
    assert operators(model) == ["MatMulNBits"] * len(readers)
    for name, y in compile_plan(model, kernels=()).run({"x": x}).items():
        np.testing.assert_allclose(y, want[name], rtol=1e-5, atol=1e-4)


def test_codes_of_several_products_are_stored_once(rng):
    model = network(rng, readers=("MatMul", "Gemm"))
    multiply_in_blocks(model)
    one, other = model.graph
    assert one.inputs[1] is other.inputs[1]
    assert constant(one.inputs[1]).nbytes == N * 96 // 2


@pytest.mark.parametrize(
    "what", [{"block": 16}, {"readers": ("Gemm",), "alpha": 0.5}, {"readers": ("Add",)}, {"kind": np.uint8}]
)
def test_what_no_kernel_takes_stays_as_it_is(rng, what):
    model = network(rng, **what)
    before = operators(model)
    multiply_in_blocks(model)
    assert operators(model) == before


def test_a_gpu_without_such_kernels_widens_the_weights(rng, monkeypatch):
    turing = device.Gpu(name="fake", capability=(7, 5), memory=1 << 30, multiprocessors=1)
    monkeypatch.setattr(device, "gpu", lambda: turing)
    model = network(rng)
    multiply_in_blocks(model)
    assert operators(model) == ["DequantizeLinear", "MatMul"]
