"""Matrix products with constant weights, each peer in the form that suits it best."""

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]


def build(peer: str, seed: int, threads: int, product: str, m: int, k: int, n: int) -> Call:
    rng = np.random.default_rng(seed)
    if product == "integer":
        a, b = rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-127, 128, (k, n)).astype(np.int8)
    else:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    return {"numpy": _numpy, "onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}[peer](
        a, b, product, threads
    )


def _numpy(a: np.ndarray, b: np.ndarray, product: str, threads: int) -> Call:
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    return lambda: np.matmul(a, b, out=out)


def _onnxruntime(a: np.ndarray, b: np.ndarray, product: str, threads: int) -> Call:
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    if product == "integer":
        node = helper.make_node("MatMulInteger", ["a", "b", "za"], ["y"])
        return onnxruntime_call([node], {"a": a}, {"b": b, "za": np.uint8(7)}, {"y": TensorProto.INT32}, threads)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    return onnxruntime_call([node], {"a": a}, {"b": b}, {"y": TensorProto.FLOAT}, threads)


def _openvino(a: np.ndarray, b: np.ndarray, product: str, threads: int) -> Call:
    """For bf16 the graph is of f32 and the plugin is told to compute in bf16: it converts A on every call."""
    import openvino
    from openvino import opset13

    parameter = opset13.parameter(list(a.shape), np.float32)
    model = openvino.Model([opset13.matmul(parameter, opset13.constant(b), False, False)], [parameter])
    hint = {"float": "f32", "bfloat": "bf16"}[product]
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(a, shared_memory=True))
    return lambda kept=(a, b): request.infer()  # the tensors share memory with arrays that must stay


def _torch(a: np.ndarray, b: np.ndarray, product: str, threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    if product == "integer":
        left, right = torch.from_numpy((a.astype(np.int16) - 128).astype(np.int8)), torch.from_numpy(b)
        sums = torch.empty(left.shape[0], right.shape[1], dtype=torch.int32)
        return lambda: torch._int_mm(left, right, out=sums)  # noqa: SLF001 - there is no public one
    kind = torch.bfloat16 if product == "bfloat" else torch.float32
    left, right = torch.from_numpy(a).to(kind), torch.from_numpy(b).to(kind)
    out = torch.empty(left.shape[0], right.shape[1], dtype=kind)
    return lambda: torch.mm(left, right, out=out)
