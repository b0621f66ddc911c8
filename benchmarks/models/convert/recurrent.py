"""PyTorch's LSTM and GRU weights in ONNX's layout: gates reordered, directions stacked, the two biases joined.

PyTorch stacks the gates of an LSTM as i, f, g, o and of a GRU as r, z, n; ONNX wants i, o, f, c and z, r, h.
"""

from collections.abc import Mapping

import numpy as np

LSTM_GATES = (0, 3, 1, 2)
GRU_GATES = (1, 0, 2)


def reorder_gates(stacked: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Permute the equal blocks of axis 0."""
    blocks = np.split(stacked, len(order))
    return np.concatenate([blocks[gate] for gate in order])


def lstm_weights(
    state: Mapping[str, np.ndarray], prefix: str, layer: int, *, bidirectional: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's W (directions, 4h, inputs), R (directions, 4h, h) and B (directions, 8h) of one layer."""
    directions = ["", "_reverse"] if bidirectional else [""]

    def gates(kind: str, direction: str) -> np.ndarray:
        return reorder_gates(state[f"{prefix}{kind}_l{layer}{direction}"], LSTM_GATES)

    def biases(direction: str) -> np.ndarray:
        return np.concatenate([gates("bias_ih", direction), gates("bias_hh", direction)])

    weights = np.stack([gates("weight_ih", direction) for direction in directions])
    recurrence = np.stack([gates("weight_hh", direction) for direction in directions])
    return weights, recurrence, np.stack([biases(direction) for direction in directions])
