"""g2p-en: letters to phonemes by a GRU encoder and a GRU decoder, decoded greedily inside the graph.

chars (T, N) int64, lens (N,) int32 -> phonemes (N, 20) int64. The decoder's 20 steps are unrolled, as an export of a
loop of known length gives, and share their weights: each takes the previous step's most likely phoneme, the first one
`</s>`. What follows the first `</s>` of a row is to be ignored.
"""

from pathlib import Path

import numpy as np

from .graph import INT32, INT64, GraphBuilder
from .recurrent import GRU_GATES, reorder_gates

HIDDEN = 256
STEPS = 20
START = 2


def convert(source: Path, target: Path) -> None:
    """Read the .npz checkpoint `source`, write ONNX to `target`."""
    with np.load(source) as arrays:
        state = dict(arrays)
    graph = GraphBuilder("g2p")
    previous = _start_tokens(graph)
    hidden = _encoder(graph, state)
    steps = []
    for step in range(STEPS):
        hidden, phoneme = _decoder_step(graph, state, previous, hidden, step)
        previous = graph.node("Unsqueeze", [phoneme, "axis0"], f"next{step}")
        steps.append(previous)
    sequence = graph.node("Concat", steps, "sequence", axis=0)
    graph.node("Transpose", [sequence], "out", output="phonemes", perm=[1, 0])
    graph.save(
        target,
        {"chars": (INT64, ["T", "N"]), "lens": (INT32, ["N"])},
        {"phonemes": (INT64, ["N", STEPS])},
    )


def _start_tokens(graph: GraphBuilder) -> str:
    """(1, N) of `</s>`."""
    graph.constant("axis0", [0], np.int64)
    count = graph.node("Shape", ["lens"], "batch")
    shape = graph.node("Concat", [graph.constant("one", [1], np.int64), count], "start_shape", axis=0)
    return graph.node("Expand", [graph.constant("start", [[START]], np.int64), shape], "start_tokens")


def _encoder(graph: GraphBuilder, state: dict[str, np.ndarray]) -> str:
    """The hidden state (1, N, 256) after each word's last letter."""
    embedded = graph.node("Gather", [graph.constant("enc_emb", state["enc_emb"]), "chars"], "enc_embed")
    inputs = [embedded, *_gru_weights(graph, state, "enc"), "lens"]
    graph.nodes("GRU", inputs, ["", "enc_hidden"], "enc_gru", hidden_size=HIDDEN, linear_before_reset=1)
    return "enc_hidden"


def _decoder_step(
    graph: GraphBuilder, state: dict[str, np.ndarray], previous: str, hidden: str, step: int
) -> tuple[str, str]:
    """One greedy step: the new hidden state (1, N, 256) and the phoneme (N,) it gives."""
    embedded = graph.node("Gather", [graph.constant("dec_emb", state["dec_emb"]), previous], f"dec_embed{step}")
    inputs = [embedded, *_gru_weights(graph, state, "dec"), "", hidden]
    name = f"dec_gru{step}"
    graph.nodes("GRU", inputs, ["", f"{name}_out"], name, hidden_size=HIDDEN, linear_before_reset=1)
    flat = graph.node("Squeeze", [f"{name}_out", "axis0"], f"flat{step}")
    scores = graph.node("MatMul", [flat, graph.constant("fc_w", state["fc_w"].T)], f"fc{step}")
    logits = graph.node("Add", [scores, graph.constant("fc_b", state["fc_b"])], f"logits{step}")
    return f"{name}_out", graph.node("ArgMax", [logits], f"phoneme{step}", axis=1, keepdims=0)


def _gru_weights(graph: GraphBuilder, state: dict[str, np.ndarray], part: str) -> list[str]:
    """Names of ONNX's W, R and B (one direction), stored once for all steps."""

    def gates(kind: str) -> np.ndarray:
        return reorder_gates(state[f"{part}_{kind}"], GRU_GATES)

    return [
        graph.constant(f"{part}_W", gates("w_ih")[None]),
        graph.constant(f"{part}_R", gates("w_hh")[None]),
        graph.constant(f"{part}_B", np.concatenate([gates("b_ih"), gates("b_hh")])[None]),
    ]
