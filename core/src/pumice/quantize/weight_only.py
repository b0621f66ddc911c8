"""Weight-only quantization: every weight matrix gets few bits; layers compute in floating point, or as a runtime fuses.

What a technique brings is a `Scheme`: which codes a matrix gets, and how they are stored. The rest is the same for all:
which weights there are, what multiplies them on the calibration data, the bias that takes up the mean of what rounding
did to a layer's output (b' = b + (W - Q) E[x]; what is left is judged by the covariance of x, and by its whole second
moment where there is no bias to change), the account, and the memory that lets the accuracy guard try again.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pumice.model import add_initializer, attribute, clone, constant, consumers, nodes, remove_unread, replace_input
from pumice.quantize.compensation import Moments
from pumice.quantize.context import QuantizeContext
from pumice.quantize.grids import Grid
from pumice.quantize.placement import STEP, already_quantized
from pumice.quantize.storage import Shelf
from pumice.quantize.weight_matrices import WeightMatrix, observe_inputs, weight_matrices

OPSET = 21
"""It brought 4-bit types, and blocks to DequantizeLinear."""


@attrs.frozen(eq=False)
class Rounded:
    """A matrix in few bits."""

    grid: Grid
    codes: NDArray[Any]
    """(groups, outputs, k)."""

    def values(self) -> NDArray[Any]:
        return self.grid.values(self.codes)


class Scheme(Protocol):
    """A technique of weight-only quantization."""

    @property
    def signature(self) -> str:
        """Equal for schemes that round alike."""
        ...

    @property
    def observes(self) -> bool:
        """Whether it wants to know what multiplies the weights."""
        ...

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        """The codes of a matrix; `second` is E[x x^T] of each group, (groups, k, k), where it is known."""
        ...

    def shelve(self, rounded: Rounded, shelf: Shelf) -> None:
        """Store them."""
        ...

    def describe(self, rounded: Rounded) -> str:
        """How they are stored, for the account: `as 4-bit integers in blocks of 32`."""
        ...


def refusal(model: ir.Model) -> str | None:
    """Why weights of few bits cannot be stored in a model, or None."""
    opset = model.opset_imports.get("", OPSET)
    if opset < OPSET:
        return f"its opset is {opset}, and weights of few bits need {OPSET}: read it with pumice.load"
    return already_quantized(model)


def store_weights(model: ir.Model, scheme: Scheme, context: QuantizeContext, *, smallest: int) -> ir.Model:
    """A copy of the model with its weights stored as the scheme has them.

    Args:
        model: in floating point, as `pumice.load` leaves it.
        scheme: the technique.
        context: the calibration data and the ledger, which gets a line for every node.
        smallest: matrices with fewer weights stay as they are.
    """
    changed = clone(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(changed)
    found = [m for m in weight_matrices(iter(changed.graph)) if int(np.prod(m.shape)) >= smallest]
    wanted = {m: [r for r in m.readers if context.excluded(r[0]) is None] for m in found}
    chosen = [m for m in found if wanted[m]]
    known = _known(model, chosen, scheme, context)
    for matrix in chosen:
        rounded, shift = known[scheme.signature, matrix.name]
        _account(matrix, wanted[matrix], scheme, rounded, context)
        for node, _ in wanted[matrix]:
            _shift_bias(changed, node, shift)
        scheme.shelve(rounded, Shelf(changed, matrix, wanted[matrix]))
    _account_for_the_rest(model, smallest, context)
    changed.graph.sort()
    remove_unread(changed)
    return changed


# --- rounding ---------------------------------------------------------------------------------------------------------


class _Known(dict[tuple[str, str], tuple[Rounded, NDArray[np.float64] | None]]):
    """Matrices that were rounded before, and what to add to the bias, by signature of the scheme and name."""


class _Drafts(_Known):
    """The same, roughly."""


def _known(model: ir.Model, chosen: list[WeightMatrix], scheme: Scheme, context: QuantizeContext) -> _Known:
    known = context.recall(_Drafts if context.draft else _Known)
    missing = [matrix for matrix in chosen if (scheme.signature, matrix.name) not in known]
    observes = scheme.observes and not context.draft and context.calibration is not None
    moments = observe_inputs(model, missing, context) if observes and missing else {}
    with context.progress.task("round weights", len(missing)) as advance:
        for matrix in missing:
            known[scheme.signature, matrix.name] = _round(matrix, moments.pop(matrix, None), scheme)
            advance()
    return known


def _round(matrix: WeightMatrix, moments: Moments | None, scheme: Scheme) -> tuple[Rounded, NDArray[np.float64] | None]:
    """The codes, and what to add to the bias, (groups * outputs,)."""
    second = None if moments is None else second_moments(matrix, moments)
    rounded = scheme.rounded(matrix, second)
    if moments is None or second is None or not _shifts(matrix):
        return rounded, None
    lost, mean = matrix.rows() - rounded.values(), moments.means()[1]
    return rounded, np.einsum("gok,gk->go", lost, np.broadcast_to(mean, (len(lost), mean.shape[1]))).reshape(-1)


def second_moments(matrix: WeightMatrix, moments: Moments) -> NDArray[np.float64] | None:
    """E[x x^T] of what multiplies a matrix, about the mean where the bias takes that up, (groups, k, k)."""
    second, mean = moments.second_moments(), moments.means()[1]
    if second is None:
        return None
    if not _shifts(matrix):
        second = second + mean[:, :, None] * mean[:, None, :]
    return np.broadcast_to(second, (matrix.shape[0], *second.shape[1:]))


def _shifts(matrix: WeightMatrix) -> bool:
    return all(_takes_bias(node) for node, _ in matrix.readers)


def _bias_site(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where a number an output can be added: the bias of the layer, or the constant that is added to it next."""
    if node.op_type in ("Conv", "Gemm"):
        return node, 2
    after = consumers(node.outputs[0])
    if node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add":
        index = 1 if after[0].inputs[0] is node.outputs[0] else 0
        held = constant(after[0].inputs[index])
        if held is not None and held.ndim == 1 and not node.outputs[0].is_graph_output():
            return after[0], index
    return None


def _takes_bias(node: ir.Node) -> bool:
    site = _bias_site(node)
    if site is None or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "alpha", 1.0) != 1.0:
        return False
    given = site[0].inputs[site[1]] if site[1] < len(site[0].inputs) else None
    held = constant(given)
    return given is None or (held is not None and held.ndim == 1 and not given.is_graph_input())


def _shift_bias(model: ir.Model, node: ir.Node, shift: NDArray[np.float64] | None) -> None:
    site = _bias_site(node)
    if shift is None or site is None:
        return
    layer, index = site
    held = constant(layer.inputs[index]) if index < len(layer.inputs) else None
    moved = (shift if held is None else held.astype(np.float64) + shift).astype(np.float32)
    replace_input(layer, index, add_initializer(model, f"{node.name}/bias", moved))


# --- the account ------------------------------------------------------------------------------------------------------


def _account(
    matrix: WeightMatrix, readers: list[tuple[ir.Node, int]], scheme: Scheme, rounded: Rounded, context: QuantizeContext
) -> None:
    weights = matrix.rows()
    noise, signal = float(np.sum((weights - rounded.values()) ** 2)), float(np.sum(weights**2))
    decibels = round(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)), 2)
    reason = f"its weights are stored {scheme.describe(rounded)}; it computes in floating point"
    for node, index in readers:
        details = {"mode": "weight-only", "input": index, "weight_sqnr_db": decibels}
        context.ledger.applied(STEP, node.name or "", node.op_type, reason, **details)


def _account_for_the_rest(model: ir.Model, smallest: int, context: QuantizeContext) -> None:
    said = {entry.node for entry in context.ledger.of(STEP)}
    weighted = {node.name for matrix in weight_matrices(iter(model.graph)) for node, _ in matrix.readers}
    for node in nodes(model):
        name, kind = node.name or "", node.op_type
        if name in said:
            continue
        if node.graph is not model.graph:
            context.ledger.skipped(STEP, name, kind, "it lies in a control-flow body, which is carried untouched")
        elif reason := context.excluded(node):
            context.ledger.declined(STEP, name, kind, reason)
        elif name in weighted:
            reason = f"it has fewer than {smallest} weights: their scales would cost more than they save"
            context.ledger.declined(STEP, name, kind, reason)
        else:
            context.ledger.skipped(STEP, name, kind, "it has no weights in floating point")
