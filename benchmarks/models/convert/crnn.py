"""EasyOCR's english_g2 text recogniser: seven convolutions, two bidirectional LSTMs, CTC logits.

image (N, 1, 64, W) in [-1, 1] -> logits (N, T, 97), class 0 being the blank.
"""

from pathlib import Path

import numpy as np

from .checkpoint import load
from .graph import FLOAT, GraphBuilder
from .recurrent import lstm_weights

CLASSES = 97
HIDDEN = 256
HALVE, HALVE_HEIGHT = [2, 2], [2, 1]


def convert(source: Path, target: Path) -> None:
    """Read the .pth checkpoint `source`, write ONNX to `target`."""
    state = {key.replace("module.", ""): value for key, value in load(source).items()}
    network = _Recogniser(state)
    network.build()
    network.graph.save(target, {"image": (FLOAT, ["N", 1, 64, "W"])}, {"logits": (FLOAT, ["N", "T", CLASSES])})


class _Recogniser:
    """The graph under construction; layers carry their number in the checkpoint's sequence."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = state
        self.graph = GraphBuilder("easyocr_english_g2")

    def build(self) -> None:
        value = self.pool(self.relu(self.convolution("image", 0), 1), 2, HALVE)
        value = self.pool(self.relu(self.convolution(value, 3), 4), 5, HALVE)
        value = self.relu(self.convolution(value, 6), 7)
        value = self.pool(self.relu(self.convolution(value, 8), 9), 10, HALVE_HEIGHT)
        value = self.relu(self.batch_norm(self.convolution(value, 11), 12), 13)
        value = self.relu(self.batch_norm(self.convolution(value, 14), 15), 16)
        value = self.pool(value, 17, HALVE_HEIGHT)
        value = self.relu(self.convolution(value, 18, kernel=2, padding=0), 19)
        value = self.graph.node("ReduceMean", [value], "avg_h", axes=[2], keepdims=0)
        value = self.graph.node("Transpose", [value], "to_tnc", perm=[2, 0, 1])
        for layer in (0, 1):
            value = self.bidirectional_lstm(value, layer)
        value = self.linear(value, "Prediction", "pred")
        self.graph.node("Transpose", [value], "out", output="logits", perm=[1, 0, 2])

    def convolution(self, value: str, number: int, *, kernel: int = 3, padding: int = 1) -> str:
        prefix = f"FeatureExtraction.ConvNet.{number}."
        names = [f"{prefix}{kind}" for kind in ("weight", "bias") if f"{prefix}{kind}" in self.state]
        parameters = [self.graph.constant(name, self.state[name]) for name in names]
        shape = {"kernel_shape": [kernel, kernel], "pads": [padding] * 4}
        return self.graph.node("Conv", [value, *parameters], f"conv{number}", **shape)

    def batch_norm(self, value: str, number: int) -> str:
        prefix = f"FeatureExtraction.ConvNet.{number}."
        names = [f"{prefix}{kind}" for kind in ("weight", "bias", "running_mean", "running_var")]
        parameters = [self.graph.constant(name, self.state[name]) for name in names]
        return self.graph.node("BatchNormalization", [value, *parameters], f"bn{number}", epsilon=1e-5)

    def relu(self, value: str, number: int) -> str:
        return self.graph.node("Relu", [value], f"relu{number}")

    def pool(self, value: str, number: int, window: list[int]) -> str:
        return self.graph.node("MaxPool", [value], f"pool{number}", kernel_shape=window, strides=window)

    def bidirectional_lstm(self, value: str, layer: int) -> str:
        """(T, N, inputs) -> (T, N, 256): both directions side by side, then a linear map."""
        prefix = f"SequenceModeling.{layer}."
        arrays = lstm_weights(self.state, f"{prefix}rnn.", 0, bidirectional=True)
        weights = [
            self.graph.constant(prefix + name, array) for name, array in zip(("W", "R", "B"), arrays, strict=True)
        ]
        kind = {"hidden_size": HIDDEN, "direction": "bidirectional"}
        value = self.graph.node("LSTM", [value, *weights], f"bilstm{layer}", **kind)
        value = self.graph.node("Transpose", [value], f"lt{layer}", perm=[0, 2, 1, 3])
        joined = self.graph.constant(f"shp{layer}", [0, 0, 2 * HIDDEN], np.int64)
        value = self.graph.node("Reshape", [value, joined], f"lr{layer}")
        return self.linear(value, f"{prefix}linear", f"lin{layer}")

    def linear(self, value: str, source: str, name: str) -> str:
        weight = self.graph.constant(f"{source}.weight_T", self.state[f"{source}.weight"].T)
        bias = self.graph.constant(f"{source}.bias", self.state[f"{source}.bias"])
        return self.graph.node("Add", [self.graph.node("MatMul", [value, weight], name), bias], f"{name}b")
