"""Linear layers with weights of four bits in blocks of 128, and layers that quantize their input."""

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]
BLOCK = 128


def build(peer: str, seed: int, threads: int, form: str, m: int, k: int, n: int, accuracy: int = 0) -> Call:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k), np.float32)
    if form == "dynamic":
        return _dynamic(a, rng, n, threads)
    if peer == "openvino":
        return _openvino(a, rng, n, threads)
    return _onnxruntime(a, rng, n, threads, accuracy)


def _onnxruntime(a: np.ndarray, rng: np.random.Generator, n: int, threads: int, accuracy: int) -> Call:
    """Accuracy level 4 computes in int8, level 1 in float32."""
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    k = a.shape[1]
    weights = rng.integers(0, 256, (n, k // BLOCK, BLOCK // 2), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, n * (k // BLOCK)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["a", "w", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=4, block_size=BLOCK,
        accuracy_level=accuracy,
    )  # fmt: skip
    return onnxruntime_call([node], {"a": a}, {"w": weights, "s": scales}, {"y": TensorProto.FLOAT}, threads)


def _dynamic(a: np.ndarray, rng: np.random.Generator, n: int, threads: int) -> Call:
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    weights = rng.integers(-127, 128, (a.shape[1], n)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, n).astype(np.float32)
    node = helper.make_node("DynamicQuantizeMatMul", ["a", "w", "s"], ["y"], domain="com.microsoft")
    return onnxruntime_call([node], {"a": a}, {"w": weights, "s": scales}, {"y": TensorProto.FLOAT}, threads)


def _openvino(a: np.ndarray, rng: np.random.Generator, n: int, threads: int) -> Call:
    """Weights compressed as its own tools write them: int4, a float16 scale a block, the input quantized on the way."""
    import openvino
    from openvino import opset13

    k = a.shape[1]
    blocks = [n, k // BLOCK, BLOCK]
    packed = openvino.Tensor(rng.integers(0, 256, n * k // 2, dtype=np.uint8), openvino.Shape(blocks), openvino.Type.i4)
    half = opset13.convert(opset13.constant(packed), "f16")
    scales = opset13.constant(rng.uniform(0.01, 0.1, [*blocks[:2], 1]).astype(np.float16))
    flat = opset13.reshape(opset13.multiply(half, scales), opset13.constant(np.array([n, k])), False)
    parameter = opset13.parameter(list(a.shape), np.float32)
    product = opset13.matmul(parameter, opset13.convert(flat, "f32"), False, True)
    options = {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK,
    }  # fmt: skip
    model = openvino.Model([product], [parameter])
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(a, shared_memory=True))
    return lambda kept=a: request.infer()  # the tensor shares memory with the array, that must stay
