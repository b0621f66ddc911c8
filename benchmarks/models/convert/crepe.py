"""CREPE: six convolutions over 1024 samples of sound, each followed by ReLU, batch normalisation and pooling, and a
classifier over 360 pitch bins of 20 cents.

frames (N, 1, 1024, 1) of zero mean and unit variance -> pitch (N, 360). The kernels are even, so the padding is uneven.
"""

from pathlib import Path

import numpy as np

from .checkpoint import load
from .graph import FLOAT, GraphBuilder

LAYERS = 6
EPSILON = 0.0010000000474974513


def convert(source: Path, target: Path) -> None:
    """Read the .pth checkpoint `source`, write ONNX to `target`."""
    state = load(source)
    graph = GraphBuilder("crepe")
    value = "frames"
    for layer in range(1, LAYERS + 1):
        value = _layer(graph, state, value, layer)
    value = graph.node("Transpose", [value], "tr", perm=[0, 2, 1, 3])
    features = graph.constant("shp", [0, state["classifier.weight"].shape[1]], np.int64)
    value = graph.node("Reshape", [value, features], "flat")
    weight = graph.constant("cw", state["classifier.weight"])
    bias = graph.constant("cb", state["classifier.bias"])
    value = graph.node("Gemm", [value, weight, bias], "cls", transB=1)
    graph.node("Sigmoid", [value], "sig", output="pitch")
    graph.save(target, {"frames": (FLOAT, ["N", 1, 1024, 1])}, {"pitch": (FLOAT, ["N", 360])})


def _layer(graph: GraphBuilder, state: dict[str, np.ndarray], value: str, layer: int) -> str:
    stride, pads = (4, [254, 0, 254, 0]) if layer == 1 else (1, [31, 0, 32, 0])
    weight = graph.constant(f"w{layer}", state[f"conv{layer}.weight"])
    bias = graph.constant(f"b{layer}", state[f"conv{layer}.bias"])
    value = graph.node("Conv", [value, weight, bias], f"conv{layer}", strides=[stride, 1], pads=pads)
    value = graph.node("Relu", [value], f"relu{layer}")
    norm = [
        graph.constant(f"bn{layer}.{kind}", state[f"conv{layer}_BN.{kind}"])
        for kind in ("weight", "bias", "running_mean", "running_var")
    ]
    value = graph.node("BatchNormalization", [value, *norm], f"bn{layer}", epsilon=EPSILON)
    return graph.node("MaxPool", [value], f"pool{layer}", kernel_shape=[2, 1], strides=[2, 1])
