"""Networks with random weights, to be trained from scratch: residual, transformer and recurrent.

Kernels and matrices are drawn as He et al. say (standard deviation sqrt(2 / inputs)), those of transformers and
recurrent networks with sqrt(1 / inputs); biases are zero, scales one; the last scale of a residual branch is zero, so
that a deep network begins as a shallow one. Everything comes from one seed.
"""

from pathlib import Path

import numpy as np

from .convert.graph import FLOAT, INT64, GraphBuilder

SIDE, CLASSES = 28, 10


class Network:
    """A graph under construction: layers by name, weights drawn as they are asked for."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.graph = GraphBuilder(name)
        self._draws = np.random.default_rng(seed)

    def weight(self, name: str, shape: tuple[int, ...], inputs: int, gain: float) -> str:
        values = self._draws.standard_normal(shape) * np.sqrt(gain / inputs)
        return self.graph.constant(name, values, np.float32)

    def vector(self, name: str, size: int | tuple[int, ...], value: float = 0.0) -> str:
        return self.graph.constant(name, np.full(size, value), np.float32)

    def integers(self, name: str, *values: int) -> str:
        return self.graph.constant(name, values, np.int64)

    def conv(
        self, x: str, name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        w = self.weight(f"{name}.w", (outputs, inputs // groups, kernel, kernel), inputs // groups * kernel**2, 2.0)
        pads, size = [kernel // 2] * 4, [kernel, kernel]
        return self.graph.node("Conv", [x, w], name, kernel_shape=size, pads=pads, strides=[stride] * 2, group=groups)

    def norm(self, x: str, name: str, channels: int, scale: float = 1.0) -> str:
        parts = [self.vector(f"{name}.{part}", channels, v) for part, v in
                 (("scale", scale), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))]  # fmt: skip
        return self.graph.node("BatchNormalization", [x, *parts], name, epsilon=1e-5, momentum=0.9)

    def conv_norm(self, x: str, name: str, inputs: int, outputs: int, *, relu: bool = True, **options: int) -> str:
        y = self.norm(self.conv(x, f"{name}.conv", inputs, outputs, **options), f"{name}.norm", outputs)
        return self.graph.node("Relu", [y], f"{name}.relu") if relu else y

    def dense(self, x: str, name: str, inputs: int, outputs: int, gain: float = 1.0) -> str:
        w = self.weight(f"{name}.w", (inputs, outputs), inputs, gain)
        y = self.graph.node("MatMul", [x, w], f"{name}.product")
        return self.graph.node("Add", [y, self.vector(f"{name}.b", outputs)], name)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        parts = [self.vector(f"{name}.scale", width, 1.0), self.vector(f"{name}.bias", width)]
        return self.graph.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=1e-5)

    def head(self, x: str, channels: int, classes: int = CLASSES) -> None:
        pooled = self.graph.node("GlobalAveragePool", [x], "pool")
        flat = self.graph.node("Flatten", [pooled], "flatten")
        w = self.weight("head.w", (channels, classes), channels, 1.0)
        self.graph.node("Gemm", [flat, w, self.vector("head.b", classes)], "head", output="y")

    def save(
        self, path: Path, *shape: int | str, dtype: int = FLOAT, output: tuple[int | str, ...] = ("N", CLASSES)
    ) -> Path:
        self.graph.save(path, {"x": (dtype, ["N", *shape])}, {"y": (FLOAT, list(output))})
        return path


def resnet(path: Path, widths: tuple[int, ...] = (24, 48, 64), seed: int = 0) -> Path:
    """Three stages of a convolution and a residual block, pooled between: 165,000 weights with the default widths."""
    net = Network("resnet", seed)
    y, channels = "x", 1
    for stage, width in enumerate(widths):
        y = net.conv_norm(y, f"stage{stage}.in", channels, width)
        y = _block(net, y, f"stage{stage}.block", width)
        if stage < len(widths) - 1:
            y = net.graph.node("MaxPool", [y], f"stage{stage}.pool", kernel_shape=[2, 2], strides=[2, 2])
        channels = width
    net.head(y, channels)
    return net.save(path, 1, SIDE, SIDE)


def deep(path: Path, blocks: int = 8, widths: tuple[int, ...] = (12, 24, 48), stride: int = 1, seed: int = 0) -> Path:
    """2 * blocks * 3 + 2 layers deep: 50 with the default. `stride` is that of the first."""
    net = Network("deep", seed)
    y = net.conv_norm("x", "in", 1, widths[0], stride=stride)
    channels = widths[0]
    for stage, width in enumerate(widths):
        if width != channels:
            y = net.conv_norm(y, f"stage{stage}.in", channels, width, stride=2)
        for i in range(blocks - (stage > 0)):
            y = _block(net, y, f"stage{stage}.block{i}", width)
        channels = width
    net.head(y, channels)
    return net.save(path, 1, SIDE, SIDE)


def _block(net: Network, x: str, name: str, width: int) -> str:
    y = net.conv_norm(x, f"{name}.a", width, width)
    y = net.norm(net.conv(y, f"{name}.b.conv", width, width), f"{name}.b.norm", width, scale=0.0)
    total = net.graph.node("Add", [x, y], f"{name}.add")
    return net.graph.node("Relu", [total], f"{name}.relu")


def resnet50(path: Path, classes: int = 1000, seed: int = 0, base: int = 64) -> Path:
    """The shape of ResNet-50 (He et al., CVPR 2016), 25.6 million weights, any picture of at least 32 x 32.

    `base` is the width of the first convolution, which all others are multiples of.
    """
    net = Network("resnet50", seed)
    y = net.conv_norm("x", "in", 3, base, kernel=7, stride=2)
    y = net.graph.node("MaxPool", [y], "in.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = base
    for stage, (width, count) in enumerate(((base, 3), (2 * base, 4), (4 * base, 6), (8 * base, 3))):
        for i in range(count):
            name, stride = f"stage{stage}.{i}", 2 if stage and not i else 1
            skip = (
                y if i else net.conv_norm(y, f"{name}.skip", channels, 4 * width, kernel=1, stride=stride, relu=False)
            )
            z = net.conv_norm(y, f"{name}.a", channels, width, kernel=1)
            z = net.conv_norm(z, f"{name}.b", width, width, stride=stride)
            z = net.conv_norm(z, f"{name}.c", width, 4 * width, kernel=1, relu=False)
            y = net.graph.node("Relu", [net.graph.node("Add", [skip, z], f"{name}.add")], f"{name}.relu")
            channels = 4 * width
    net.head(y, channels, classes)
    return net.save(path, 3, "H", "W", output=("N", classes))


MOBILENET_V2 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3),
                (6, 160, 3, 2, 3), (6, 320, 1, 1, 3))  # fmt: skip
EFFICIENTNET_LITE0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
                      (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))  # fmt: skip
"""Stages of inverted residuals: expansion, width, blocks, first stride, kernel."""


def inverted_residuals(path: Path, stages: tuple[tuple[int, ...], ...], classes: int = 1000, seed: int = 0) -> Path:
    """The shape of MobileNetV2 (Sandler et al., CVPR 2018) or EfficientNet-Lite0, ReLU6 throughout."""
    net = Network("inverted_residuals", seed)
    y, channels = _relu6(net, net.conv_norm("x", "in", 3, 32, stride=2, relu=False), "in"), 32
    for stage, (expansion, width, count, first, kernel) in enumerate(stages):
        for i in range(count):
            name, inner, stride, x = f"stage{stage}.{i}", channels * expansion, first if not i else 1, y
            if expansion > 1:
                y = _relu6(net, net.conv_norm(y, f"{name}.up", channels, inner, kernel=1, relu=False), f"{name}.up")
            y = net.conv_norm(y, f"{name}.deep", inner, inner, kernel=kernel, stride=stride, groups=inner, relu=False)
            y = net.conv_norm(_relu6(net, y, f"{name}.deep"), f"{name}.down", inner, width, kernel=1, relu=False)
            y = net.graph.node("Add", [x, y], f"{name}.add") if stride == 1 and channels == width else y
            channels = width
    y = _relu6(net, net.conv_norm(y, "out", channels, 1280, kernel=1, relu=False), "out")
    net.head(y, 1280, classes)
    return net.save(path, 3, "H", "W", output=("N", classes))


def bottlenecks(
    path: Path, blocks: tuple[int, ...] = (5, 6, 5), widths: tuple[int, ...] = (16, 24, 40), seed: int = 0
) -> Path:
    """Inverted residuals 3 * sum(blocks) + 2 layers deep: 50 with the default, 115,000 weights."""
    net = Network("bottlenecks", seed)
    y, channels = net.conv_norm("x", "in", 1, widths[0], stride=2), widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for i in range(count):
            name, inner, first = f"stage{stage}.{i}", 4 * channels, stage > 0 and i == 0
            z = net.conv_norm(y, f"{name}.up", channels, inner, kernel=1)
            z = net.conv_norm(z, f"{name}.deep", inner, inner, stride=2 if first else 1, groups=inner)
            z = net.conv_norm(z, f"{name}.down", inner, width, kernel=1, relu=False)
            y, channels = z if first else net.graph.node("Add", [y, z], f"{name}.add"), width
    net.head(y, channels)
    return net.save(path, 1, SIDE, SIDE)


def _relu6(net: Network, x: str, name: str) -> str:
    limits = [net.vector("zero", (), 0.0), net.vector("six", (), 6.0)]
    return net.graph.node("Clip", [x, *limits], f"{name}.relu6")


def vit(path: Path, width: int = 96, layers: int = 4, heads: int = 4, seed: int = 0) -> Path:
    """A vision transformer over 49 patches of 4 x 4, with the mean of its tokens as the picture."""
    net = Network("vit", seed)
    w = net.weight("patches.w", (width, 1, 4, 4), 16, 1.0)
    y = net.graph.node("Conv", ["x", w, net.vector("patches.b", width)], "patches", kernel_shape=[4, 4], strides=[4, 4])
    y = net.graph.node("Reshape", [y, net.integers("to_tokens", 0, width, 49)], "tokens")
    y = net.graph.node("Transpose", [y], "tokens_last", perm=[0, 2, 1])
    position = net.graph.constant("position", np.random.default_rng(seed).normal(0, 0.02, (1, 49, width)), np.float32)
    y = net.graph.node("Add", [y, position], "placed")
    for i in range(layers):
        y = _encoder(net, y, f"layer{i}", width, heads)
    y = net.layer_norm(y, "last_norm", width)
    y = net.graph.node("ReduceMean", [y], "mean", axes=[1], keepdims=0)
    w = net.weight("head.w", (width, CLASSES), width, 1.0)
    net.graph.node("Gemm", [y, w, net.vector("head.b", CLASSES)], "head", output="y")
    return net.save(path, 1, SIDE, SIDE)


def bert(path: Path, width: int = 768, layers: int = 12, heads: int = 12, words: int = 1000, seed: int = 0) -> Path:
    """The shape of BERT's encoder (width 768, 12 layers: base; 1024, 24: large); a class from the mean of tokens."""
    net = Network("bert", seed)
    table = net.weight("words", (words, width), 1, 0.02**2)
    y = net.graph.node("Gather", [table, "x"], "embedding")
    y = net.layer_norm(y, "embedding_norm", width)
    for i in range(layers):
        y = _encoder(net, y, f"layer{i}", width, heads)
    y = net.graph.node("ReduceMean", [y], "mean", axes=[1], keepdims=0)
    net.graph.node(
        "Gemm", [y, net.weight("head.w", (width, 2), width, 1.0), net.vector("head.b", 2)], "head", output="y"
    )
    return net.save(path, "T", dtype=INT64, output=("N", 2))


def _encoder(net: Network, x: str, name: str, width: int, heads: int) -> str:
    """Attention and a feed-forward part, each normalised before it and added to what came in."""
    y = net.layer_norm(x, f"{name}.norm1", width)
    q, k, v = (
        _heads(net, net.dense(y, f"{name}.{part}", width, width), f"{name}.{part}", width, heads) for part in "qkv"
    )
    k = net.graph.node("Transpose", [k], f"{name}.k_t", perm=[0, 1, 3, 2])
    scores = net.graph.node("MatMul", [q, k], f"{name}.scores")
    root = net.graph.constant(f"root{width // heads}", np.sqrt(width // heads), np.float32)
    scores = net.graph.node("Div", [scores, root], f"{name}.scaled")
    shares = net.graph.node("Softmax", [scores], f"{name}.softmax", axis=-1)
    y = net.graph.node("MatMul", [shares, v], f"{name}.read")
    y = net.graph.node("Transpose", [y], f"{name}.read_t", perm=[0, 2, 1, 3])
    y = net.graph.node("Reshape", [y, net.integers(f"merge{width}", 0, 0, width)], f"{name}.merged")
    x = net.graph.node("Add", [x, net.dense(y, f"{name}.out", width, width)], f"{name}.add1")
    y = net.layer_norm(x, f"{name}.norm2", width)
    y = _gelu(net, net.dense(y, f"{name}.up", width, 4 * width), f"{name}.gelu")
    return net.graph.node("Add", [x, net.dense(y, f"{name}.down", 4 * width, width)], f"{name}.add2")


def _heads(net: Network, x: str, name: str, width: int, heads: int) -> str:
    shape = net.integers(f"split{width}x{heads}", 0, 0, heads, width // heads)
    y = net.graph.node("Reshape", [x, shape], f"{name}_split")
    return net.graph.node("Transpose", [y], f"{name}_heads", perm=[0, 2, 1, 3])


def _gelu(net: Network, x: str, name: str) -> str:
    parts = {key: net.graph.constant(key, value, np.float32) for key, value in
             (("root2", np.sqrt(2)), ("one", 1.0), ("half", 0.5))}  # fmt: skip
    y = net.graph.node("Erf", [net.graph.node("Div", [x, parts["root2"]], f"{name}.div")], f"{name}.erf")
    y = net.graph.node("Mul", [x, net.graph.node("Add", [y, parts["one"]], f"{name}.add")], f"{name}.mul")
    return net.graph.node("Mul", [y, parts["half"]], f"{name}.half")


def lstm(path: Path, hidden: int = 128, layers: int = 2, seed: int = 0) -> Path:
    """LSTM layers over the rows of a picture, the class from the last state; forget gates begin open."""
    net = Network("lstm", seed)
    y = net.graph.node("Squeeze", ["x", net.integers("channel", 1)], "rows")
    y = net.graph.node("Transpose", [y], "rows_first", perm=[1, 0, 2])
    inputs = SIDE
    for i in range(layers):
        w = net.weight(f"layer{i}.w", (1, 4 * hidden, inputs), inputs, 1.0)
        r = net.weight(f"layer{i}.r", (1, 4 * hidden, hidden), hidden, 1.0)
        bias = np.zeros((1, 8 * hidden))
        bias[:, 2 * hidden : 3 * hidden] = 1.0
        b = net.graph.constant(f"layer{i}.b", bias, np.float32)
        outputs = [f"layer{i}_out", f"layer{i}_last", ""]
        net.graph.nodes("LSTM", [y, w, r, b], outputs, f"layer{i}", hidden_size=hidden)
        y = net.graph.node("Squeeze", [outputs[0], net.integers("direction", 1)], f"layer{i}_states")
        inputs = hidden
    last = net.graph.node("Squeeze", [f"layer{layers - 1}_last", net.integers("first", 0)], "last")
    w = net.weight("head.w", (hidden, CLASSES), hidden, 1.0)
    net.graph.node("Gemm", [last, w, net.vector("head.b", CLASSES)], "head", output="y")
    return net.save(path, 1, SIDE, SIDE)


def states(path: Path, hidden: int = 256, layers: int = 2, inputs: int = 256, seed: int = 0) -> Path:
    """LSTM layers over a sequence (steps, batch, inputs), to the states of the last one."""
    net = Network("states", seed)
    y = net.graph.node("Transpose", ["x"], "steps_first", perm=[1, 0, 2])
    for i in range(layers):
        w = net.weight(f"layer{i}.w", (1, 4 * hidden, inputs), inputs, 1.0)
        r = net.weight(f"layer{i}.r", (1, 4 * hidden, hidden), hidden, 1.0)
        b = net.graph.constant(f"layer{i}.b", np.zeros((1, 8 * hidden)), np.float32)
        y = net.graph.node("LSTM", [y, w, r, b], f"layer{i}", hidden_size=hidden)
        y = net.graph.node("Squeeze", [y, net.integers("direction", 1)], f"layer{i}_states")
        inputs = hidden
    net.graph.node("Identity", [y], "all", output="y")
    return net.save(path, "T", 256, output=("T", "N", hidden))
