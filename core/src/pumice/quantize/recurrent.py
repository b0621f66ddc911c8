"""Recurrent layers in integers.

    LSTM       DynamicQuantizeLSTM: 8-bit W and R, a scale an output; the input is quantized while the model runs, the
               hidden state at every step, each with the range that it has then; cell state and gates stay real
    GRU        no runtime has an operator for it: its weights are stored in eight bits and widened at load, or it is
               spelt out in integer operators (`gru_steps`)
    RNN        its weights are stored in eight bits

Ranges fixed by calibration would make the state drift, since its rounding errors come back with every step: a state
that is quantized anew by its own range at every step, and a real cell state, do not. Weights are rounded by what
multiplies them on the calibration data (`error_feedback`): R by the states that the layer itself wrote.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, fresh_name
from pumice.quantize.context import QuantizeContext
from pumice.quantize.error_feedback import codes_with_feedback
from pumice.quantize.grids import AffineGrid
from pumice.quantize.gru_steps import Matrix, gru_refusal, spell_out
from pumice.quantize.placement import STEP
from pumice.quantize.storage import MS, Shelf
from pumice.quantize.weight_matrices import RECURRENT, WeightMatrix, observe_inputs, weight_matrices

BITS = 8
Rounded = tuple[AffineGrid, NDArray[Any]]


class _Known(dict[str, Rounded]):
    """Matrices rounded before, by name."""


class _Drafts(_Known):
    """The same, to the nearest."""


def quantize_recurrent(
    model: ir.Model, changed: ir.Model, context: QuantizeContext, *, compensate: bool, spell_grus: bool = False
) -> None:
    """Quantize the recurrent layers of `changed`, in place; each gets its line in the ledger.

    Args:
        model: the original, in floating point, whose recurrent layers are those of `changed`.
        changed: what is edited.
        context: the calibration data; a layer that it excludes stays as it is.
        compensate: whether weights are rounded by what multiplies them, or to the nearest integer.
        spell_grus: whether GRUs become integer operators, one after the other, or only store their weights.
    """
    nodes = [n for n in changed.graph if n.op_type in RECURRENT and context.excluded(n) is None]
    matrices = [m for m in weight_matrices(iter(nodes)) if m.op in RECURRENT]
    known = _rounded(model, matrices, context, observe=compensate and not context.draft)
    own = {node: [m for m in matrices if any(reader is node for reader, _ in m.readers)] for node in nodes}
    stored = {matrix: _Stored(changed, *known[matrix.name]) for matrix in matrices}
    spelt = [n for n in nodes if spell_grus and n.op_type == "GRU" and len(own[n]) == 2 and gru_refusal(n) is None]
    widened = [n for n in nodes if len(own[n]) == 2 and lstm_refusal(n) and n not in spelt]
    for matrix in matrices:
        readers = [(node, index) for node, index in matrix.readers if node in widened]
        if readers:
            Shelf(changed, matrix, readers).affine(*known[matrix.name], "auto")
    for node in nodes:
        name, kind = node.name or "", node.op_type
        if len(own[node]) < 2:
            context.ledger.declined(STEP, name, kind, "its weights are computed while the model runs")
        elif node in spelt:
            reason = "computes with integers, spelt out; input and hidden state get their range while it runs"
            context.ledger.applied(STEP, name, kind, reason, mode="dynamic", bits=BITS)
            spell_out(changed, node, *(_matrix(*known[matrix.name]) for matrix in own[node]))
        elif refused := lstm_refusal(node):
            reason = f"its weights are stored as integers; it computes in floating point, because {refused}"
            context.ledger.applied(STEP, name, kind, reason, mode="weight-only", bits=BITS)
        else:
            reason = "computes with integers; input and hidden state get their range while it runs"
            context.ledger.applied(STEP, name, kind, reason, mode="dynamic", bits=BITS)
            _replace(changed, node, [stored[matrix] for matrix in own[node]])
    changed.graph.sort()


def _matrix(grid: AffineGrid, codes: NDArray[Any]) -> Matrix:
    integers = np.ascontiguousarray(codes.astype(np.int8).transpose(0, 2, 1))
    return Matrix(integers, grid.scale[:, :, 0].astype(np.float32))


def lstm_refusal(node: ir.Node) -> str | None:
    """Why DynamicQuantizeLSTM cannot take the place of a node, or None."""
    if node.op_type != "LSTM":
        return f"no runtime has an integer operator for {node.op_type}"
    if attribute(node, "layout", 0):
        return "DynamicQuantizeLSTM has its steps first, this layer its batch"
    return None


def _rounded(model: ir.Model, matrices: list[WeightMatrix], context: QuantizeContext, *, observe: bool) -> _Known:
    known = context.recall(_Drafts if context.draft else _Known)
    missing = [matrix for matrix in matrices if matrix.name not in known]
    moments = observe_inputs(model, missing, context) if missing and observe else {}
    for matrix in missing:
        weights, block = matrix.rows(), matrix.shape[2]
        grid = AffineGrid.covering(weights, bits=BITS, block=block, symmetric=True)
        seen = moments.get(matrix)
        second = None if seen is None else seen.second_moments()
        if seen is None or second is None:
            known[matrix.name] = grid, grid.codes(weights)
            continue
        mean = seen.means()[1]
        raw = second + mean[:, :, None] * mean[:, None, :]
        raw = np.broadcast_to(raw, (matrix.shape[0], *raw.shape[1:]))
        known[matrix.name] = grid, codes_with_feedback(weights, grid, raw)
    return known


@attrs.define(eq=False)
class _Stored:
    """Integers of a matrix as DynamicQuantizeLSTM reads them, in the model once for all layers that share them."""

    model: ir.Model
    grid: AffineGrid
    codes: NDArray[Any]
    values: tuple[ir.Value, ir.Value, ir.Value] | None = None
    """Integers (directions, inputs, outputs), scale and zero point."""

    def place(self, name: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        if self.values is None:
            matrix = _matrix(self.grid, self.codes)
            self.values = (
                add_initializer(self.model, name, matrix.integers),
                add_initializer(self.model, f"{name}/scale", matrix.scale),
                add_initializer(self.model, f"{name}/zero_point", np.zeros(matrix.scale.shape, np.int8)),
            )
        return self.values


def _replace(model: ir.Model, node: ir.Node, stored: list[_Stored]) -> None:
    """DynamicQuantizeLSTM under the names of the node."""
    placed = [each.place(f"{node.name}/{what}") for what, each in zip("WR", stored, strict=True)]
    integers, parameters = [values[0] for values in placed], [v for values in placed for v in values[1:]]
    given = [*node.inputs, *[None] * (8 - len(node.inputs))]
    kept = [attr for name, attr in node.attributes.items() if name != "layout"]
    made = ir.Node(MS, "DynamicQuantizeLSTM", [given[0], *integers, *given[3:8], *parameters], kept, num_outputs=3)
    model.opset_imports.setdefault(MS, 1)
    node.prepend(made)
    name = str(node.name)
    made.name, node.name = name, fresh_name(model, f"{name}/replaced")
    for old, new in zip(node.outputs, made.outputs, strict=False):
        held = old.name
        new.shape, new.type = old.shape, old.type
        old.name = fresh_name(model, f"{held or name}/replaced")
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = held
    for missing in made.outputs[len(node.outputs) :]:
        missing.name = ""
    model.graph.remove(node, safe=True)
