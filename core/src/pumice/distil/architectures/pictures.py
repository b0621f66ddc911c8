"""Families for pictures (N, channels, height, width): residual networks and inverted residuals."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import onnx_ir as ir

from pumice.distil.architectures.network import Network


@attrs.frozen(kw_only=True)
class Resnet:
    """Stages of residual blocks of two convolutions (He et al., CVPR 2016); all but the first halve the sides."""

    inputs = "picture"
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of every stage."""
    blocks: int = 1
    """Residual blocks of every stage."""

    def body(self, net: Network, x: ir.Value) -> tuple[ir.Value, int]:
        channels = int(x.shape[1])  # type: ignore[index, arg-type]
        for stage, width in enumerate(self.widths):
            x = net.conv_norm(x, f"stage{stage}.in", channels, width, stride=2 if stage else 1)
            for number in range(self.blocks):
                x = self._block(net, x, f"stage{stage}.block{number}", width)
            channels = width
        return x, channels

    @staticmethod
    def _block(net: Network, x: ir.Value, name: str, width: int) -> ir.Value:
        y = net.conv_norm(x, f"{name}.a", width, width)
        y = net.conv_norm(y, f"{name}.b", width, width, act="", scale=0.0)
        return net.node("Relu", [net.node("Add", [x, y], f"{name}.add")], f"{name}.relu")


@attrs.frozen(kw_only=True)
class Mobilenet:
    """Inverted residuals: widened, filtered channel by channel, narrowed (Sandler et al., CVPR 2018)."""

    inputs = "picture"
    widths: tuple[int, ...] = (16, 24, 40)
    """Channels of every stage; every stage but the first halves the sides."""
    blocks: int = 2
    """Blocks of every stage; all but the first add their input back."""
    expansion: int = 4
    """How much wider the middle of a block is."""

    def body(self, net: Network, x: ir.Value) -> tuple[ir.Value, int]:
        channels = int(x.shape[1])  # type: ignore[index, arg-type]
        x, channels = net.conv_norm(x, "stem", channels, self.widths[0]), self.widths[0]
        for stage, width in enumerate(self.widths):
            for number in range(self.blocks):
                stride = 2 if stage and not number else 1
                x = self._block(net, x, f"stage{stage}.block{number}", channels, width, stride)
                channels = width
        return x, channels

    def _block(self, net: Network, x: ir.Value, name: str, inputs: int, outputs: int, stride: int) -> ir.Value:
        wide = inputs * self.expansion
        y = net.conv_norm(x, f"{name}.widen", inputs, wide, kernel=1)
        y = net.conv_norm(y, f"{name}.filter", wide, wide, stride=stride, groups=wide)
        y = net.conv_norm(y, f"{name}.narrow", wide, outputs, act="", kernel=1)
        return net.node("Add", [x, y], f"{name}.add") if stride == 1 and inputs == outputs else y


def classified(net: Network, x: ir.Value, channels: int, outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Scores from the mean of every channel, for each output (N, classes)."""
    flat = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "flatten")
    return [net.dense(flat, f"head{i}", channels, int(y.shape[1])) for i, y in enumerate(outputs)]  # type: ignore[index, arg-type]
