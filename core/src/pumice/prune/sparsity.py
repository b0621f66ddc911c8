"""The `sparsify` step: single weights become zero, in a pattern, layer by layer.

    unstructured   a share of the weights, wherever they are
    N:M            of every M neighbours along the inputs of an output at most N stay

No shape changes, so nothing gets faster by itself: a runtime multiplies by zeros as by any number, and a file is as
large as before until it is compressed. Both sizes are counted, dense and compressed:

    unstructured   4 bytes a weight that stays, and a bit for every place
    N:M            4 bytes a weight that stays, and ceil(log2 M) bits for its place among its neighbours

Zeros are the mask: `train` leaves elements alone that are zero, and quantizers map zero to zero.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import BudgetExceeded, KnobError, nearest
from pumice.measure.budget import JUDGED, judge, rows
from pumice.model import clone, nodes
from pumice.quantize.compensation import Moments
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.quantize.weight_matrices import WeightMatrix, observe_inputs, weight_matrices
from pumice.strategy import Need

if TYPE_CHECKING:
    from pumice.pipeline import RunContext
    from pumice.steps import Sparsify
    from pumice.strategy import Sparsifier

STEP = "sparsify"
WORD = 4
"""Bytes of a weight."""


@attrs.frozen(kw_only=True)
class Pattern:
    """Which weights may stay."""

    ratio: float
    """Share that becomes zero."""
    run: int = 0
    """M of N:M; 0 is unstructured."""

    @classmethod
    def of(cls, name: str, ratio: float) -> Pattern:
        """From the knobs of the step: `unstructured` with its ratio, or `2:4`."""
        if name == "unstructured":
            return cls(ratio=ratio)
        keep, run = map(int, name.split(":"))
        return cls(ratio=1 - keep / run, run=run)

    def keep(self, scores: NDArray[Any], *, whole: bool = False) -> NDArray[np.bool_]:
        """What stays of a matrix of scores (outputs, inputs): the highest.

        Without runs the share is kept of every row or, if asked for, of the whole matrix.
        """
        if self.run:
            return self._runs(scores)
        table = scores.reshape(1, -1) if whole else scores
        return self._highest(table, table.shape[1] - round(self.ratio * table.shape[1])).reshape(scores.shape)

    def _runs(self, scores: NDArray[Any]) -> NDArray[np.bool_]:
        rest = -scores.shape[1] % self.run
        padded = np.pad(scores, ((0, 0), (0, rest)), constant_values=-np.inf)
        kept = self._highest(padded.reshape(-1, self.run), round((1 - self.ratio) * self.run))
        return kept.reshape(padded.shape)[:, : scores.shape[1]]

    @staticmethod
    def _highest(table: NDArray[Any], count: int) -> NDArray[np.bool_]:
        kept = np.zeros(table.shape, bool)
        np.put_along_axis(kept, np.argsort(-table, axis=1, kind="stable")[:, :count], True, axis=1)
        return kept

    def bytes(self, zeros: int, count: int) -> int:
        """Compressed size of `count` weights, so many of which are zero."""
        places = (count - zeros) * math.ceil(math.log2(self.run)) if self.run else count
        return (count - zeros) * WORD + math.ceil(places / 8)

    def __str__(self) -> str:
        return f"{round((1 - self.ratio) * self.run)}:{self.run}" if self.run else f"{self.ratio:.0%} unstructured"


def sparsify(settings: Sparsify, sparsifier: Sparsifier, model: ir.Model, context: RunContext) -> ir.Model:
    """The model with zeros; `model` is left unchanged.

    Raises:
        KnobError: a pattern of `exclude` that names no node.
        BudgetExceeded: more was lost than `max_drop`.
    """
    pattern = Pattern.of(settings.pattern, settings.ratio)
    changed = clone(model)
    matrices = _eligible(changed, settings, context)
    moments = _moments(changed, matrices, sparsifier, context)
    dense = compressed = zeros = 0
    for matrix in matrices:
        weights = _sparse(matrix, sparsifier, moments.get(matrix), pattern)
        none = int((weights == 0).sum())
        matrix.value.const_value = ir.tensor(matrix.restored(weights).astype(np.float32), name=matrix.value.name)
        for node, _ in matrix.readers:
            reason = f"{none} of its {weights.size} weights are zero ({pattern}, {sparsifier.name})"
            context.ledger.applied(STEP, node.name or "", node.op_type, reason, zeros=none / weights.size)
        zeros, dense = zeros + none, dense + weights.size * WORD
        compressed += pattern.bytes(none, weights.size)
    if matrices:
        _judge(model, changed, settings, context)
        _report(zeros, dense, compressed, pattern, context)
    return changed


def _eligible(model: ir.Model, settings: Sparsify, context: RunContext) -> list[WeightMatrix]:
    known = [node.name or "" for node in nodes(model)]
    for name in settings.exclude:
        if not fnmatch.filter(known, name):
            raise KnobError(f"step 'sparsify': the pattern '{name}' matches no node{nearest(name, known)}")
    found, sparse = [], set[str]()
    for matrix in weight_matrices(node for node in nodes(model) if node.graph is model.graph):
        reason = _reason(matrix, settings)
        if reason is None:
            found.append(matrix)
        for node, _ in matrix.readers:
            sparse.add(node.name or "")
            if reason is not None:
                context.ledger.declined(STEP, node.name or "", node.op_type, reason)
    for node in nodes(model):
        if (node.name or "") not in sparse:
            context.ledger.skipped(STEP, node.name or "", node.op_type, "it has no weights")
    return found


def _reason(matrix: WeightMatrix, settings: Sparsify) -> str | None:
    """Why a matrix stays dense."""
    readers = [node.name or "" for node, _ in matrix.readers]
    if any(fnmatch.fnmatchcase(name, pattern) for name in readers for pattern in settings.exclude):
        return "the user excludes it"
    if matrix.op == "Gather":
        return "it is a table: its rows are looked up, not multiplied"
    size = math.prod(matrix.shape)
    return None if size >= settings.smallest else f"it has only {size} weights"


def _moments(
    model: ir.Model, matrices: list[WeightMatrix], sparsifier: Sparsifier, context: RunContext
) -> Mapping[WeightMatrix, Moments]:
    if Need.CALIBRATION not in sparsifier.needs:
        return {}
    around = QuantizeContext(
        calibration=context.calibration,
        runtime=context.runtime,
        target=Target.named("ort-cpu"),
        progress=context.progress,
    )
    return observe_inputs(model, matrices, around)


def _sparse(matrix: WeightMatrix, sparsifier: Sparsifier, moments: Moments | None, pattern: Pattern) -> NDArray[Any]:
    """The weights of a matrix, group by group."""
    weights = matrix.rows()
    second: list[Any] = [None] * len(weights)
    if moments is not None and (spread := moments.second_moments()) is not None:
        means = moments.means()[0]
        found = spread + means[:, :, None] * means[:, None, :]
        second = [found[min(group, len(found) - 1)] for group in range(len(weights))]
    return np.stack([sparsifier.sparsified(w, h, pattern) for w, h in zip(weights, second, strict=True)])


def _judge(model: ir.Model, changed: ir.Model, settings: Sparsify, context: RunContext) -> None:
    if settings.max_drop >= 1.0 or context.calibration is None:
        return
    samples = rows(context.calibration, JUDGED)
    verdict = judge(model, changed, samples, context.metrics, context.runtime, settings.max_drop)
    if verdict.exceeded:
        raise BudgetExceeded(f"{verdict}; make fewer weights zero, or raise max_drop and train afterwards")


def _report(zeros: int, dense: int, compressed: int, pattern: Pattern, context: RunContext) -> None:
    count = dense // WORD
    context.ledger.note(
        STEP,
        f"{zeros / count:.0%} of {count:,} weights are zero: {dense:,} bytes dense, {compressed:,} compressed",
        zeros=zeros, dense_bytes=dense, compressed_bytes=compressed, pattern=str(pattern),
    )  # fmt: skip
    context.notes.append(
        f"{zeros / count:.0%} of the weights in layers are zero: {compressed / dense:.0%} of their bytes once "
        f"compressed, but all of them in an ordinary file, and {context.runtime.name} computes with zeros as slowly as "
        "with any number; to make it faster, remove channels (step 'prune')"
    )
