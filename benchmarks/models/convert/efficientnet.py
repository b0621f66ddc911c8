"""EfficientNet-Lite0: a stem, seven stages of inverted residuals with ReLU6, no squeeze-and-excitation.

image (N, 3, 224, 224), (x - 127) / 128 -> logits (N, 1000). Padding is TensorFlow's SAME: the odd pixel goes last.
"""

import math
from pathlib import Path

import attrs
import numpy as np

from .checkpoint import load
from .graph import FLOAT, GraphBuilder

SIZE = 224
EPSILON = 1e-3


@attrs.frozen
class Stage:
    """`repeats` blocks, of which only the first strides and changes the channel count."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


def convert(source: Path, target: Path) -> None:
    """Read the .pth checkpoint `source`, write ONNX to `target`."""
    network = _Network(load(source))
    network.build()
    network.graph.save(target, {"image": (FLOAT, ["N", 3, SIZE, SIZE])}, {"logits": (FLOAT, ["N", 1000])})


class _Network:
    """The graph under construction: `value` is the tensor reached so far, `size` its height and width."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = state
        self.graph = GraphBuilder("efficientnet_lite0")
        self.value, self.size = "image", SIZE
        self.graph.constant("zero", np.float32(0))
        self.graph.constant("six", np.float32(6))

    def build(self) -> None:
        self.convolution("_conv_stem", "_bn0", 3, stride=2)
        number = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                self.inverted_residual(f"_blocks.{number}.", stage, first=repeat == 0)
                number += 1
        self.convolution("_conv_head", "_bn1", 1)
        pooled = self.graph.node("GlobalAveragePool", [self.value], "gap", output="gap")
        features = self.graph.node("Flatten", [pooled], "flatten", output="feat", axis=1)
        weight, bias = self.parameter("_fc.weight"), self.parameter("_fc.bias")
        self.graph.node("Gemm", [features, weight, bias], "_fc", output="logits", transB=1)

    def inverted_residual(self, name: str, stage: Stage, *, first: bool) -> None:
        shortcut = self.value
        channels_in = stage.channels_in if first else stage.channels_out
        stride = stage.stride if first else 1
        if stage.expansion != 1:
            self.convolution(f"{name}_expand_conv", f"{name}_bn0", 1)
        groups = channels_in * stage.expansion
        self.convolution(f"{name}_depthwise_conv", f"{name}_bn1", stage.kernel, stride=stride, groups=groups)
        self.convolution(f"{name}_project_conv", f"{name}_bn2", 1, activation=False)
        if stride == 1 and channels_in == stage.channels_out:
            self.value = self.graph.node("Add", [self.value, shortcut], f"{name}add", output=f"{name}add")

    def convolution(
        self, name: str, norm: str, kernel: int, *, stride: int = 1, groups: int = 1, activation: bool = True
    ) -> None:
        before, after, self.size = _same_padding(self.size, kernel, stride)
        self.value = self.graph.node(
            "Conv",
            [self.value, self.parameter(f"{name}.weight")],
            name,
            output=name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        statistics = [self.parameter(f"{norm}.{kind}") for kind in ("weight", "bias", "running_mean", "running_var")]
        self.value = self.graph.node(
            "BatchNormalization", [self.value, *statistics], norm, output=norm, epsilon=EPSILON
        )
        if activation:
            clipped = f"{norm}.relu6"
            self.value = self.graph.node("Clip", [self.value, "zero", "six"], clipped, output=clipped)

    def parameter(self, name: str) -> str:
        return self.graph.constant(name, self.state[name])


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """(before, after, output size) of SAME padding along one axis."""
    result = math.ceil(size / stride)
    total = max((result - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2, result
