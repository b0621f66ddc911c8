"""Softmax, LayerNorm, GELU, tanh and quantization of a matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]


def build(peer: str, seed: int, threads: int, function: str, shape: list[int]) -> Call:
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}[peer](x, function, threads)


def _onnxruntime(x: np.ndarray, function: str, threads: int) -> Call:
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    columns = x.shape[1]
    scale, bias = np.ones(columns, np.float32), np.zeros(columns, np.float32)
    op_type, constants, domain = {
        "softmax": ("Softmax", {}, ""),
        "layer norm": ("LayerNormalization", {"scale": scale, "bias": bias}, ""),
        "gelu": ("Gelu", {}, "com.microsoft"),
        "tanh": ("Tanh", {}, ""),
        "quantize": ("QuantizeLinear", {"scale": np.float32(0.02), "zero": np.uint8(128)}, ""),
    }[function]
    node = helper.make_node(op_type, ["x", *constants], ["y"], domain=domain)
    code = TensorProto.UINT8 if function == "quantize" else TensorProto.FLOAT
    return onnxruntime_call([node], {"x": x}, constants, {"y": code}, threads)


def _openvino(x: np.ndarray, function: str, threads: int) -> Call:
    import openvino
    from openvino import opset13

    parameter = opset13.parameter(list(x.shape), np.float32)
    result = {
        "softmax": lambda: opset13.softmax(parameter, 1),
        "layer norm": lambda: opset13.mvn(parameter, opset13.constant(np.array([1])), True, 1e-5, "inside_sqrt"),
        "gelu": lambda: opset13.gelu(parameter, "erf"),
        "tanh": lambda: opset13.tanh(parameter),
    }[function]()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = (
        openvino.Core().compile_model(openvino.Model([result], [parameter]), "CPU", options).create_infer_request()
    )
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return lambda kept=x: request.infer()  # the tensor shares memory with the array, that must stay


def _torch(x: np.ndarray, function: str, threads: int) -> Call:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tensor, columns = torch.from_numpy(x), [x.shape[1]]
    scale, bias, out = torch.ones(columns), torch.zeros(columns), torch.empty_like(tensor)
    return {
        "softmax": lambda: torch.softmax(tensor, 1),
        "layer norm": lambda: functional.layer_norm(tensor, columns, scale, bias),
        "gelu": lambda: functional.gelu(tensor),
        "tanh": lambda: torch.tanh(tensor, out=out),
    }[function]
