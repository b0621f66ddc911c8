"""Convolutions with constant weights, in 8 bits and in f32 as ONNX has it.

onnxruntime's quantized operator has its channels last, as ours. OpenVINO quantizes convolutions inside a network only:
its figure is its own counter of the convolution, which takes the requantization along, between two FakeQuantize.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]


def build(
    peer: str, seed: int, threads: int, dtype: str, channels: int, filters: int, side: int, kernel: int, stride: int,
    groups: int,
) -> Call:  # fmt: skip
    rng = np.random.default_rng(seed)
    shape = (filters, channels // groups, kernel, kernel)
    geometry = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups, "kernel_shape": [kernel] * 2}
    if dtype == "u8":
        x = rng.integers(0, 256, (1, side, side, channels)).astype(np.uint8)
        quantized = {"onnxruntime": _quantized_onnxruntime, "openvino": _quantized_openvino}[peer]
        return quantized(x, rng.integers(-127, 128, shape).astype(np.int8), geometry, threads)
    x, w = rng.standard_normal((1, channels, side, side), np.float32), rng.standard_normal(shape, np.float32)
    b = rng.standard_normal(filters, np.float32)
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}[peer](x, w, b, geometry, threads)


def _quantized_onnxruntime(x: np.ndarray, w: np.ndarray, geometry: dict[str, Any], threads: int) -> Call:
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    scale, filters = np.float32(0.02), len(w)
    constants = {
        "xs": scale, "xz": np.uint8(3), "w": w, "ws": np.full(filters, 1e-3, np.float32),
        "wz": np.zeros(filters, np.int8), "ys": scale, "yz": np.uint8(5), "b": np.zeros(filters, np.int32),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], domain="com.microsoft", channels_last=1, **geometry)
    return onnxruntime_call([node], {"x": x}, constants, {"y": TensorProto.UINT8}, threads)


def _quantized_openvino(x: np.ndarray, w: np.ndarray, geometry: dict[str, Any], threads: int) -> Call:
    import openvino
    from openvino import opset13

    def quantized(value: Any, low: np.ndarray, high: np.ndarray, levels: int) -> Any:
        bounds = [opset13.constant(bound) for bound in (low, high, low, high)]
        return opset13.fake_quantize(value, *bounds, levels)

    def levels_of(value: Any, zero: int) -> Any:
        return quantized(value, np.float32(-0.02 * zero), np.float32(0.02 * (255 - zero)), 256)

    reals = np.ascontiguousarray((x.transpose(0, 3, 1, 2).astype(np.float32) - 3) * np.float32(0.02))
    parameter = opset13.parameter(list(reals.shape), np.float32)
    most = np.full((len(w), 1, 1, 1), 0.127, np.float32)
    weights = quantized(opset13.constant(w * np.float32(1e-3)), -most, most, 255)
    pads, groups = geometry["pads"][:2], geometry["group"]
    convolve = opset13.convolution
    if groups > 1:
        convolve = opset13.group_convolution
        weights = opset13.reshape(weights, [groups, len(w) // groups, *w.shape[1:]], False)
    y = convolve(levels_of(parameter, 3), weights, geometry["strides"], pads, pads, [1, 1])
    model = openvino.Model([levels_of(y, 5)], [parameter])
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERF_COUNT": True}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(reals, shared_memory=True))
    request.infer()
    kinds = [node.exec_type for node in request.profiling_info if "Convolution" in node.node_type]
    if not all(kind.endswith("I8") for kind in kinds):
        raise ValueError(f"the convolution is not in 8 bits but {kinds}")

    def call(kept: np.ndarray = reals) -> float:
        request.infer()
        spent = [node.real_time for node in request.profiling_info if "Convolution" in node.node_type]
        return sum(time.total_seconds() for time in spent)

    return call


def _onnxruntime(x: np.ndarray, w: np.ndarray, b: np.ndarray, geometry: dict[str, Any], threads: int) -> Call:
    from onnx import TensorProto, helper
    from served.onnx_graphs import onnxruntime_call

    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **geometry)
    return onnxruntime_call([node], {"x": x}, {"w": w, "b": b}, {"y": TensorProto.FLOAT}, threads)


def _openvino(x: np.ndarray, w: np.ndarray, b: np.ndarray, geometry: dict[str, Any], threads: int) -> Call:
    import openvino
    from openvino import opset13

    parameter = opset13.parameter(list(x.shape), np.float32)
    pads, groups = geometry["pads"][:2], geometry["group"]
    if groups > 1:
        grouped = w.reshape(groups, len(w) // groups, *w.shape[1:])
        y = opset13.group_convolution(parameter, opset13.constant(grouped), geometry["strides"], pads, pads, [1, 1])
    else:
        y = opset13.convolution(parameter, opset13.constant(w), geometry["strides"], pads, pads, [1, 1])
    model = openvino.Model([opset13.add(y, opset13.constant(b.reshape(1, -1, 1, 1)))], [parameter])
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return lambda kept=x: request.infer()  # the tensor shares memory with an array that must stay


def _torch(x: np.ndarray, w: np.ndarray, b: np.ndarray, geometry: dict[str, Any], threads: int) -> Call:
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in (x, w, b)]
    padding = geometry["pads"][0]

    def call() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(*tensors, geometry["strides"], padding, groups=geometry["group"])

    return call
