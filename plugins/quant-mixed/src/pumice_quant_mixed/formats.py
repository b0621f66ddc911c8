"""Formats: what a layer may become, what its weights then are and weigh, and putting a choice into a model.

float32            as it is
float16, bfloat16  weights stored in 16 bits, widened when the model is loaded
int8               computed in integers where the target can, else weights stored in 8 bits
uint8              weights stored in 8 bits with a scale and an offset for every 64 inputs
int4               the same in 4 bits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.ledger import Entry, Ledger
from pumice.model import clone
from pumice.quantize.context import QuantizeContext
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.quantize.error_feedback import codes_with_feedback
from pumice.quantize.grids import AffineGrid
from pumice.quantize.placement import STEP
from pumice.quantize.storage import Shelf
from pumice.quantize.weight_matrices import WeightMatrix, weight_matrices
from pumice.quantize.weight_only import Rounded, store_weights

Choice = Mapping[str, str]
"""Format by name of the node; nodes that are missing stay as they are."""
BITS = {"int4": 4, "uint8": 8, "int8": 8, "float16": 16, "bfloat16": 16, "float32": 32}
BLOCKWISE, BLOCK = ("int4", "uint8"), 64
"""Formats whose weights share a scale and an offset, and how many of them do."""
LARGEST_FLOAT16 = 65504.0


def unknown(formats: tuple[str, ...]) -> str | None:
    """Why these formats cannot be chosen among, or None."""
    wrong = [name for name in formats if name not in BITS]
    if wrong:
        return f"there is no format '{wrong[0]}': use {', '.join(BITS)}"
    return None if len(formats) > 1 else "there is nothing to choose: give at least two formats"


def given_to(name: str, matrices: Sequence[WeightMatrix]) -> dict[str, str]:
    """A format for every node that reads the matrices: weights that an unrolled loop shares stay one."""
    return {str(node.name): name for matrix in matrices for node, _ in matrix.readers}


def grid_of(name: str, matrix: WeightMatrix, weights: NDArray[Any]) -> AffineGrid:
    """The grid of an integer format."""
    block = matrix.shape[2] if name == "int8" or matrix.op == "Gather" else min(BLOCK, matrix.shape[2])
    return AffineGrid.covering(weights, bits=BITS[name], block=block, symmetric=name == "int8")


def rounded_to(name: str, matrix: WeightMatrix, weights: NDArray[Any]) -> NDArray[Any]:
    """Weights (groups, outputs, k) as a format holds them, each the nearest; infinite where float16 overflows."""
    if name in (*BLOCKWISE, "int8"):
        grid = grid_of(name, matrix, weights)
        return grid.values(grid.codes(weights))
    with np.errstate(over="ignore"):
        return weights.astype(_dtype(name)).astype(np.float64)


def bytes_of(name: str, matrix: WeightMatrix) -> float:
    """What a matrix takes, with scales and zero points."""
    groups, outputs, k = matrix.shape
    blocks = groups * outputs * (-(-k // BLOCK) if name in BLOCKWISE else 1 if name == "int8" else 0)
    offset = BITS[name] / 8 if name in BLOCKWISE else 0.0
    return groups * outputs * k * BITS[name] / 8 + blocks * (4.0 + offset)


def _dtype(name: str) -> Any:
    import ml_dtypes

    return {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[name]


@attrs.frozen(eq=False)
class FormatScheme:
    """Weights of one format, for `store_weights`."""

    format: str

    @property
    def signature(self) -> str:
        return self.format

    @property
    def observes(self) -> bool:
        return self.format in (*BLOCKWISE, "int8")

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        weights = matrix.rows()
        if not self.observes:
            return Rounded(_Floats(_dtype(self.format)), weights.astype(_dtype(self.format)))
        grid = grid_of(self.format, matrix, weights)
        return Rounded(grid, grid.codes(weights) if second is None else codes_with_feedback(weights, grid, second))

    def shelve(self, rounded: Rounded, shelf: Shelf) -> None:
        if isinstance(rounded.grid, AffineGrid):
            shelf.affine(rounded.grid, rounded.codes, "auto")
        else:
            shelf.narrow_floats(rounded.codes)

    def describe(self, rounded: Rounded) -> str:
        return f"as {self.format}"


@attrs.frozen
class _Floats:
    """A grid of floating-point numbers: codes are the numbers."""

    dtype: Any

    def codes(self, weights: NDArray[Any]) -> NDArray[Any]:
        return weights.astype(self.dtype)

    def values(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.float64)

    def column(self, inputs: NDArray[Any]) -> _Floats:
        return self


def apply_formats(model: ir.Model, choice: Choice, context: QuantizeContext, *, smallest: int) -> ir.Model:
    """A copy of the model with every layer in its format; the ledger gets a line for every node."""
    accounts: list[Ledger] = []
    changed = clone(model)
    whole = {name for name, chosen in choice.items() if chosen == "int8"}
    if whole:
        changed = _in_integers(model, whole, context, accounts, smallest)
        whole -= {entry.node for entry in accounts[0].of(STEP, "applied")}
    for name in ("int8", *BLOCKWISE, "bfloat16", "float16"):
        layers = whole if name == "int8" else {node for node, chosen in choice.items() if chosen == name}
        if layers:
            around = _only(layers, model, context)
            accounts.append(around.ledger)
            changed = store_weights(changed, FormatScheme(name), around, smallest=smallest)
    context.ledger.extend(_merged(model, accounts, choice, context))
    return changed


def _in_integers(
    model: ir.Model, layers: set[str], context: QuantizeContext, accounts: list[Ledger], smallest: int
) -> ir.Model:
    around = _only(layers, model, context)
    accounts.append(around.ledger)
    return quantize_layers(model, Scheme(smallest=smallest), around)


def _only(layers: set[str], model: ir.Model, context: QuantizeContext) -> QuantizeContext:
    """The context in which a quantizer sees some layers only, with a ledger of its own."""
    others = {n.name or "" for m in weight_matrices(iter(model.graph)) for n, _ in m.readers} - layers
    kept = {**dict.fromkeys(others, "it has another format"), **context.kept}
    return attrs.evolve(context, ledger=Ledger(), kept=kept)


def _merged(model: ir.Model, accounts: list[Ledger], choice: Choice, context: QuantizeContext) -> Ledger:
    """One account: what was applied to a node by any format; else why it was left."""
    lines: dict[str, list[Entry]] = {}
    for account in accounts:
        for entry in account:
            lines.setdefault(entry.node, []).append(entry)
    merged = Ledger()
    for node in model.graph.all_nodes():
        name, found = node.name or "", lines.get(node.name or "", [])
        applied = [entry for entry in found if entry.verdict == "applied"]
        if applied:
            chosen = choice.get(name, "")
            merged.extend(Ledger([attrs.evolve(e, details={**e.details, "format": chosen}) for e in applied]))
        elif reason := context.excluded(node):
            merged.declined(STEP, name, node.op_type, reason)
        elif choice.get(name) == "float32":
            merged.declined(STEP, name, node.op_type, "it stays in float32: any other format costs more than it saves")
        else:
            merged.skipped(STEP, name, node.op_type, found[0].reason if found else "it has no weights to choose for")
    return merged
