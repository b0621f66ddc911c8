"""What an error of each weight costs, to second order.

What errors e of a matrix do to the outputs of the network is taken apart into what they do to the outputs of the layer,
and what these do to the network's (Martens and Grosse, K-FAC, ICML 2015):

    E |J e|^2 = sum over outputs o of heed[o] (e[o] H e[o]^T),   H = E[x x^T],
    heed[o] = sum over k of E g[o, k]^2 / sum over k of E x[k]^2

with g the gradients of the outputs with random signs (`output_gradients`): from few samples one number an output is
known well, one a weight is not. Of H counts the diagonal or, where errors are fed back, what of it the weights still to
come cannot make up for. Where the inputs are not known (a table that is looked up) the gradients say it all. Without
gradients, errors count relative to the signal of their layer; without inputs, to the weights of their output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import UnsupportedOp
from pumice.quantize.compensation import Moments
from pumice.quantize.error_feedback import output_error, unexplained_moments
from pumice.quantize.output_gradients import output_gradients
from pumice.quantize.placement import STEP
from pumice.quantize.weight_matrices import WeightMatrix, moved, observe_inputs
from pumice.quantize.weight_only import second_moments

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice_quant_kmeans import KMeans

Array = NDArray[Any]
FLOOR = 0.3
"""Share of the mean that every input, output and weight counts on top: a few samples tell little of what was quiet."""
LEAST, TINY = 0.01, 1e-30
DRAWS = 2
"""Backward passes a sample."""


@attrs.frozen(eq=False)
class Importance:
    """The square of an error costs `heed * loud`."""

    heed: Array
    """(groups, outputs, 1); (groups, outputs, k) where gradients are all that is known."""
    loud: Array
    """(groups, 1, k), or ones."""

    @property
    def of_weights(self) -> Array:
        """Of a shape that broadcasts to (groups, outputs, k)."""
        return np.asarray(self.heed * self.loud)

    @property
    def of_outputs(self) -> Array:
        """(groups, outputs), 1 on average."""
        each = self.heed.mean(axis=2)
        return np.asarray(each / max(float(each.mean()), TINY))


class Importances(dict[str, Importance]):
    """By name of the matrix; kept for further attempts."""


def importances(
    model: ir.Model, matrices: Sequence[WeightMatrix], knobs: KMeans, context: QuantizeContext
) -> dict[str, Importance]:
    """Of every matrix, as `weighting` has it; a note says so if the outputs cannot be differentiated."""
    if knobs.weighting == "none" or context.calibration is None:
        return {}
    squares = _squared_gradients(model, matrices, context) if knobs.weighting == "fisher" else {}
    moments = observe_inputs(model, matrices, context)
    fed_back = knobs.rounding == "compensated"
    return {m.name: _importance(m, squares.get(m.name), moments.pop(m, None), fed_back) for m in matrices}


def relative_to_weights(matrix: WeightMatrix) -> Importance:
    """Of a matrix of which nothing is known: the mean over its outputs of |e|^2 / |w|^2."""
    power = np.square(matrix.rows()).sum(axis=2, keepdims=True)
    return Importance(1.0 / (power.size * np.maximum(power, LEAST * power.mean() + TINY)), np.ones((1, 1, 1)))


def _importance(matrix: WeightMatrix, squares: Array | None, moments: Moments | None, fed_back: bool) -> Importance:
    second = None if moments is None else second_moments(matrix, moments)
    if moments is None or second is None:
        return relative_to_weights(matrix) if squares is None else Importance(_floored(squares), np.ones((1, 1, 1)))
    loud = _floored(unexplained_moments(second) if fed_back else np.einsum("gkk->gk", second))[:, None, :]
    if squares is None:
        signal = max(float(output_error(matrix.rows(), second).sum()), TINY)
        return Importance(np.full((*matrix.shape[:2], 1), 1.0 / signal), loud)
    power = _mean_squares(moments).sum(axis=1)[:, None, None]
    heed = squares.sum(axis=2, keepdims=True, dtype=np.float64) / np.maximum(power, TINY)
    return Importance(_floored(heed), loud)


def _mean_squares(moments: Moments) -> Array:
    """E[q^2] of what a layer reads, (groups, k)."""
    assert moments.products is not None
    assert moments.centre is not None
    centre = moments.centre[:, :, 0].astype(np.float64)
    mean = moments.seen / moments.count
    return np.asarray(np.einsum("gkk->gk", moments.products) / moments.count + centre * (2.0 * mean - centre))


def _floored(counts: Array) -> Array:
    return np.asarray(counts + FLOOR * counts.mean())


def _squared_gradients(model: ir.Model, matrices: Sequence[WeightMatrix], context: QuantizeContext) -> dict[str, Array]:
    """The mean of g^2 of every weight, (groups, outputs, k), by name of its matrix; none where all of it is zero."""
    sums, passes = {m.name: np.zeros(m.shape, np.float32) for m in matrices}, 0
    names = [str(matrix.value.name) for matrix in matrices]
    try:
        for gradients in output_gradients(model, names, context, draws=DRAWS):
            for matrix in matrices:
                gradient = moved(gradients[str(matrix.value.name)], matrix.to_rows)
                sums[matrix.name] += np.square(gradient.reshape(matrix.shape))
            passes += 1
        reason = "no output of the model varies smoothly with its weights"
    except UnsupportedOp as error:
        sums, reason = {}, str(error)
    found = {name: total / passes for name, total in sums.items() if total.any()}
    if not found:
        said = f"weights count by what they do to the outputs of their layers, because {reason}"
        context.notes.append(said)
        context.ledger.note(STEP, said)
    return found
