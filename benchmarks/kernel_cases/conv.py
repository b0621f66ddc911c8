"""Convolutions: every distinct layer of ResNet50 and MobileNetV2, in 8 bits fused with requantization, and in f32.

8-bit layers have their channels last on both sides; f32 ones have ONNX's layout.
"""

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np

from . import Case, Work

RESNET50 = (
    (3, 64, 224, 7, 2), (64, 64, 56, 1, 1), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (256, 64, 56, 1, 1),
    (256, 128, 56, 1, 1), (128, 128, 56, 3, 2), (128, 512, 28, 1, 1), (256, 512, 56, 1, 2), (512, 128, 28, 1, 1),
    (128, 128, 28, 3, 1), (512, 256, 28, 1, 1), (256, 256, 28, 3, 2), (256, 1024, 14, 1, 1), (512, 1024, 28, 1, 2),
    (1024, 256, 14, 1, 1), (256, 256, 14, 3, 1), (1024, 512, 14, 1, 1), (512, 512, 14, 3, 2), (512, 2048, 7, 1, 1),
    (1024, 2048, 14, 1, 2), (2048, 512, 7, 1, 1), (512, 512, 7, 3, 1),
)  # fmt: skip
MOBILENET_V2 = (
    (3, 32, 224, 3, 2), (32, 16, 112, 1, 1), (16, 96, 112, 1, 1), (96, 24, 56, 1, 1), (24, 144, 56, 1, 1),
    (144, 24, 56, 1, 1), (144, 32, 28, 1, 1), (32, 192, 28, 1, 1), (192, 32, 28, 1, 1), (192, 64, 14, 1, 1),
    (64, 384, 14, 1, 1), (384, 64, 14, 1, 1), (384, 96, 14, 1, 1), (96, 576, 14, 1, 1), (576, 96, 14, 1, 1),
    (576, 160, 7, 1, 1), (160, 960, 7, 1, 1), (960, 160, 7, 1, 1), (960, 320, 7, 1, 1), (320, 1280, 7, 1, 1),
)  # fmt: skip
DEPTHWISE = (
    (32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 3, 2), (192, 28, 3, 1), (192, 28, 3, 2),
    (384, 14, 3, 1), (576, 14, 3, 1), (576, 14, 3, 2), (960, 7, 3, 1),
)  # fmt: skip


@attrs.frozen
class Layer:
    """One convolution of a batch of one, padded by half its kernel."""

    channels: int
    filters: int
    side: int
    kernel: int
    stride: int
    groups: int = 1

    @property
    def name(self) -> str:
        """As the table shows it."""
        kind = f"{self.channels} depthwise" if self.groups > 1 else f"{self.channels}->{self.filters}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{kind} {self.kernel}x{self.kernel}{stride} @{self.side}"

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """Their shape."""
        return self.filters, self.channels // self.groups, self.kernel, self.kernel

    @property
    def operations(self) -> float:
        """Of one run."""
        output = (self.side - 1) // self.stride + 1
        return 2.0 * output**2 * float(np.prod(self.weights))


def layers() -> list[tuple[str, Layer]]:
    """All of them, with the network."""
    found = [("ResNet50", Layer(*layer)) for layer in RESNET50]
    found += [("MobileNetV2", Layer(*layer)) for layer in MOBILENET_V2]
    return found + [("MobileNetV2", Layer(c, c, side, k, stride, c)) for c, side, k, stride in DEPTHWISE]


def cases(quick: bool) -> Iterator[Case]:
    """Quick: every eighth layer."""
    for dtype in ("u8", "f32"):
        for _network, layer in layers()[:: 8 if quick else 1]:
            given = {"dtype": dtype, **attrs.asdict(layer)}
            peers = ("onnxruntime", "openvino", "torch") if dtype == "f32" else ("onnxruntime", "openvino")
            yield Case(
                family="conv",
                name=f"{dtype} conv {layer.name}",
                operations=layer.operations,
                peak="integer" if dtype == "u8" else "float",
                target=(3.0 if layer.groups > 1 else 1.0) if dtype == "u8" else 1.0,
                rival="onnxruntime" if dtype == "u8" else None,
                weight_bytes=int(np.prod(layer.weights)) * (1 if dtype == "u8" else 4),
                ours=lambda threads, seed, layer=layer, dtype=dtype: ours(layer, dtype, threads, seed),
                peers=dict.fromkeys(peers, given),
            )


def ours(layer: Layer, dtype: str, threads: int, seed: int) -> Work:
    """A call on packed weights."""
    from pumice.ops.record import Node
    from pumice.ops.window import Window

    attributes: dict[str, Any] = {"strides": [layer.stride] * 2, "pads": [layer.kernel // 2] * 4}
    node = Node(op_type="Conv", attributes=attributes)
    window = Window.of(node, (layer.side, layer.side), (layer.kernel, layer.kernel))
    rng = np.random.default_rng(seed)
    return (_levels if dtype == "u8" else _floats)(layer, window, rng, threads)


def _levels(layer: Layer, window: Any, rng: np.random.Generator, threads: int) -> Work:
    from pumice_cpu.arrays import empty
    from pumice_cpu.conv_u8 import ConvU8, Requantize

    weights = rng.integers(-127, 128, layer.weights).astype(np.int16)
    x = rng.integers(0, 256, (1, *window.size, layer.channels)).astype(np.uint8)
    conv = ConvU8(weights, window, groups=layer.groups, bias=np.zeros(layer.filters, np.int32), zero_point=3)
    multiplier = np.full(layer.filters, 1e-3, np.float32)
    how = Requantize(multiplier=multiplier, zero_point=np.asarray(5, np.uint8))
    return conv.bound(x, how, empty((1, *window.output, layer.filters), np.uint8), threads=threads)


def _floats(layer: Layer, window: Any, rng: np.random.Generator, threads: int) -> Work:
    from pumice_cpu.conv_f32 import ConvF32

    conv = ConvF32(rng.standard_normal(layer.weights, np.float32), window, groups=layer.groups)
    x = rng.standard_normal((1, layer.channels, *window.size), np.float32)
    bias = rng.standard_normal(layer.filters, np.float32)
    return lambda: conv(x, bias, threads=threads)
