"""Resemblyzer's speaker encoder: three LSTM layers, the last hidden state, a linear layer, ReLU, unit length.

mel (N, T, 40) -> embed (N, 256).
"""

from pathlib import Path

import numpy as np

from .checkpoint import load
from .graph import FLOAT, GraphBuilder
from .recurrent import lstm_weights

LAYERS, WIDTH = 3, 256


def convert(source: Path, target: Path) -> None:
    """Read the .pt checkpoint `source`, write ONNX to `target`."""
    state = load(source)["model_state"]
    graph = GraphBuilder("resemblyzer")
    value = graph.node("Transpose", ["mel"], "tnc", perm=[1, 0, 2])
    for layer in range(LAYERS):
        arrays = lstm_weights(state, "lstm.", layer)
        weights = [graph.constant(f"{name}{layer}", array) for name, array in zip("WRB", arrays, strict=True)]
        last = layer == LAYERS - 1
        outputs = ["", "h_last"] if last else [f"y{layer}"]
        graph.nodes("LSTM", [value, *weights], outputs, f"lstm{layer}", hidden_size=WIDTH)
        axis = graph.constant(f"ax{layer}", [0 if last else 1], np.int64)
        value = graph.node("Squeeze", [outputs[-1], axis], f"sq{layer}")
    weight, bias = graph.constant("lw", state["linear.weight"]), graph.constant("lb", state["linear.bias"])
    value = graph.node("Gemm", [value, weight, bias], "linear", transB=1)
    value = graph.node("Relu", [value], "relu")
    length = graph.node("ReduceL2", [value], "norm", axes=[1], keepdims=1)
    graph.node("Div", [value, length], "l2", output="embed")
    graph.save(target, {"mel": (FLOAT, ["N", "T", 40])}, {"embed": (FLOAT, ["N", WIDTH])})
