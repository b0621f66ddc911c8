"""An LSTM with integer weights whose inputs are quantized while it runs, as ONNX Runtime has it.

W and R are integers, one scale a direction or an output, transposed: (directions, inputs, 4 hidden). The input of all
steps is quantized once and the hidden state step by step, each with one scale for the batch (DynamicQuantizeLinear);
the cell state stays real.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.quantize import dynamic_parameters
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic
from pumice.ops.recurrent import Cell, State, lstm_cells, run_cells


def _round_trip(x: Array) -> Array:
    """What is left of a value by quantizing it."""
    scale, zero = dynamic_parameters(x)
    zero = zero.astype(np.float32)
    seen: Array = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    return seen.astype(np.float32, copy=False)


def _real(integers: Array, scale: Array, zero: Array) -> Array:
    """Weights as LSTM has them, (directions, 4 hidden, inputs)."""
    broad = [parameter.reshape(len(integers), 1, -1) for parameter in (scale, zero)]
    return ((integers.astype(np.float32) - broad[1].astype(np.float32)) * broad[0]).transpose(0, 2, 1)


def _dynamic_lstm(node: Node, x: Array, w: Array, r: Array, *rest: Any) -> Outputs:
    b, lengths, first_h, first_c, peepholes, ws, wz, rs, rz = (*rest, *[None] * 9)[:9]
    seen, real_w, real_r = _round_trip(x), _real(w, ws, wz), _real(r, rs, rz)
    cells = lstm_cells(node, seen, real_w, real_r, b, lengths, first_h, first_c, peepholes)

    def direction(i: int) -> Cell:
        cell = cells(i)

        def step(projected: Array, state: State) -> State:
            return cell.step(projected, (_round_trip(state[0]), *state[1:]))

        return attrs.evolve(cell, step=step)

    return run_cells(node, seen, real_w, lengths, (first_h, first_c), direction)


def _cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    x, w, r = inputs[:3]
    assert x is not None
    weights = elements(w) + elements(r)
    return OpCost(macs=x[0] * x[1] * weights, params=weights, bytes=traffic(node, inputs, outputs).bytes)


OPS = (Op("DynamicQuantizeLSTM", domain="com.microsoft", forward=_dynamic_lstm, cost=_cost),)
