"""Recurrent layers in integers.

    LSTM       DynamicQuantizeLSTM: 8-bit W and R; the input is quantized while the model runs, the hidden state at
               every step, each with the range that it has then; cell state and gates stay real
    GRU        no runtime has an operator for it: its weights are stored in eight bits and widened at load, or it is
               spelt out in integer operators (`gru_steps`)
    RNN        its weights are stored in eight bits

Ranges fixed by calibration would make the state drift, since its rounding errors come back with every step: a state
that is quantized anew by its own range at every step, and a real cell state, do not. Weights are rounded by what
multiplies them on the calibration data (`error_feedback`): R by the states that the layer itself wrote.

Integer layers have one scale a direction for W and one for R, unless their outputs are very uneven: onnxruntime would
multiply by a scale an output at every step, up to a tenth of the time. Input and state have only eight bits as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, fresh_name
from pumice.quantize.context import QuantizeContext
from pumice.quantize.error_feedback import codes_with_feedback
from pumice.quantize.grids import AffineGrid
from pumice.quantize.gru_steps import Matrix, gru_refusal, spell_out
from pumice.quantize.placement import STEP, standard
from pumice.quantize.rounding import NARROW
from pumice.quantize.storage import MS, Shelf
from pumice.quantize.target import Mode, Target
from pumice.quantize.weight_matrices import RECURRENT, WeightMatrix, observe_inputs, weight_matrices

MATRICES = 2
"""Weights of a layer: what multiplies the input, what multiplies the state."""
Recurrent = Literal["none", "kernel", "stored", "spelt"]
"""Which recurrent layers are quantized: none; those that the target has an integer kernel for; of the others too, the
weights; and GRUs, where there is no kernel, as many integer operators."""
Form = Literal["integer", "stored", "spelt"]
"""What becomes of a layer: an integer operator, weights that are widened at load, or many integer operators."""
UNEVEN = 8.0
"""Times the median that the largest scale may be for all outputs to share it: that costs half of them three bits."""
Rounded = tuple[AffineGrid, NDArray[Any]]


class _Known(dict[str, Rounded]):
    """Matrices rounded before, by name."""


class _Drafts(_Known):
    """The same, to the nearest."""


def place_recurrent(
    model: ir.Model, wanted: Recurrent, modes: Collection[Mode], context: QuantizeContext, *, smallest: int
) -> dict[ir.Node, Form]:
    """What each recurrent layer of the main graph becomes; all of them get their line in the ledger.

    Args:
        model: in floating point.
        wanted: which of them to quantize.
        modes: ways of computing with integers that are allowed.
        context: the target, which says how it computes each of them; a layer that it excludes stays as it is.
        smallest: layers with fewer weights stay as they are.
    """
    found: dict[ir.Node, Form] = {}
    for node in model.graph:
        if node.op_type not in RECURRENT or not standard(node):
            continue
        name, kind = node.name or "", node.op_type
        form, reason = _form(node, wanted, modes, context, smallest)
        if form is None:
            context.ledger.declined(STEP, name, kind, reason)
        else:
            found[node], mode = form, "weight-only" if form == "stored" else "dynamic"
            context.ledger.applied(STEP, name, kind, reason, mode=mode, bits=_bits(context.target))
    return found


def _form(
    node: ir.Node, wanted: Recurrent, modes: Collection[Mode], context: QuantizeContext, smallest: int
) -> tuple[Form | None, str]:
    """What a layer becomes, None if it stays as it is, and why."""
    if reason := context.excluded(node) or _refusal(node, wanted, smallest):
        return None, reason
    obstacle = _obstacle(node, modes, context.target)
    if obstacle is None:
        return "integer", "computes with integers; input and hidden state get their range while it runs"
    if wanted == "spelt" and node.op_type == "GRU" and gru_refusal(node) is None:
        return "spelt", "computes with integers, spelt out; input and hidden state get their range while it runs"
    if wanted == "kernel" or node.op_type not in context.target.recurrent:
        return None, f"it stays in floating point: {obstacle}"
    return "stored", f"its weights are stored as integers; it computes in floating point, because {obstacle}"


def _refusal(node: ir.Node, wanted: Recurrent, smallest: int) -> str | None:
    """Why a layer cannot be quantized, or is not to be."""
    if wanted == "none":
        return "recurrent layers are to stay in floating point"
    matrices = weight_matrices(iter([node]))
    if len(matrices) < MATRICES:
        return "its weights are computed while the model runs, or are not float32"
    if sum(int(np.prod(matrix.shape)) for matrix in matrices) < smallest:
        return f"it has fewer than {smallest} weights: integers would cost more than they save"
    return None


def _obstacle(node: ir.Node, modes: Collection[Mode], target: Target) -> str | None:
    """Why no integer operator can take the place of a layer, or None."""
    if target.recurrent.get(node.op_type) != "dynamic":
        return f"there is no integer operator for {node.op_type} ({target.summary})"
    if "dynamic" not in modes:
        return "rounding errors would add up in its state, were ranges not found while it runs"
    if attribute(node, "layout", 0):
        return "DynamicQuantizeLSTM has its steps first, this layer its batch"
    return None


def _bits(target: Target) -> int:
    """Of the weights: states reach the ends of their range, where pairs of products saturate."""
    return NARROW if target.pair_saturation else target.weight_bits


def quantize_recurrent(
    model: ir.Model, changed: ir.Model, forms: Mapping[ir.Node, Form], context: QuantizeContext, *, compensate: bool
) -> None:
    """Give the recurrent layers of `changed` their forms, in place.

    Args:
        model: the original, in floating point, whose recurrent layers are those of `changed`.
        changed: what is edited.
        forms: what `place_recurrent` found for its nodes.
        context: the calibration data.
        compensate: whether weights are rounded by what multiplies them, or to the nearest integer.
    """
    matrices = weight_matrices(iter(forms))
    known = _rounded(model, matrices, forms, context, observe=compensate and not context.draft)
    own = {node: [m for m in matrices if any(reader is node for reader, _ in m.readers)] for node in forms}
    stored = {matrix: _Stored(changed, *known[matrix.name]) for matrix in matrices}
    for matrix in matrices:
        readers = [(node, index) for node, index in matrix.readers if forms[node] == "stored"]
        if readers:
            Shelf(changed, matrix, readers).affine(*known[matrix.name], "auto")
    for node, form in forms.items():
        if form == "spelt":
            spell_out(changed, node, *(_matrix(*known[matrix.name]) for matrix in own[node]))
        elif form == "integer":
            _replace(changed, node, [stored[matrix] for matrix in own[node]])
    changed.graph.sort()


def _matrix(grid: AffineGrid, codes: NDArray[Any]) -> Matrix:
    integers = np.ascontiguousarray(codes.astype(np.int8).transpose(0, 2, 1))
    return Matrix(integers, grid.scale[:, :, 0].astype(np.float32))


def _rounded(
    model: ir.Model,
    matrices: list[WeightMatrix],
    forms: Mapping[ir.Node, Form],
    context: QuantizeContext,
    *,
    observe: bool,
) -> _Known:
    known = context.recall(_Drafts if context.draft else _Known)
    missing = [matrix for matrix in matrices if matrix.name not in known]
    moments = observe_inputs(model, missing, context) if missing and observe else {}
    for matrix in missing:
        weights, seen = matrix.rows(), moments.get(matrix)
        grid = AffineGrid.covering(weights, bits=_bits(context.target), block=matrix.shape[2], symmetric=True)
        if all(forms[node] == "integer" for node, _ in matrix.readers):
            grid = _with_one_scale(grid)
        second = None if seen is None else seen.second_moments()
        if seen is None or second is None:
            known[matrix.name] = grid, grid.codes(weights)
            continue
        mean = seen.means()[1]
        raw = second + mean[:, :, None] * mean[:, None, :]
        raw = np.broadcast_to(raw, (matrix.shape[0], *raw.shape[1:]))
        known[matrix.name] = grid, codes_with_feedback(weights, grid, raw)
    return known


def _with_one_scale(grid: AffineGrid) -> AffineGrid:
    """The grid with the largest scale of each direction for all its outputs, unless they are too uneven for that."""
    largest, median = grid.scale.max(axis=1, keepdims=True), np.median(grid.scale, axis=1, keepdims=True)
    return attrs.evolve(grid, scale=np.where(largest <= UNEVEN * median, largest, grid.scale))


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
            alike = bool((matrix.scale == matrix.scale[:, :1]).all())
            scale = matrix.scale[:, 0] if alike else matrix.scale
            self.values = (
                add_initializer(self.model, name, matrix.integers),
                add_initializer(self.model, f"{name}/scale", scale),
                add_initializer(self.model, f"{name}/zero_point", np.zeros(scale.shape, np.int8)),
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
