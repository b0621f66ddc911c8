"""Binary cross-entropy of independent yes-or-no scores, one label from 0 to 1 for each.

With z a score before the sigmoid, t its label and w the weight of a yes,

    loss = mean of  w t softplus(-z) + (1 - t) softplus(z)      d loss / d z = ((1 - t) s(z) - w t s(-z)) / scores

with s the sigmoid. Where the model ends in a sigmoid, its outputs are probabilities p and the loss is
- w t log p - (1 - t) log(1 - p). Labels below zero count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Choice, Float, Loss, Need, Text, hookimpl, knob
from pumice.errors import DataError

Array = NDArray[Any]
SMALLEST = 1e-7
"""Distance that a probability keeps from 0 and 1."""


@attrs.frozen(kw_only=True)
class BinaryCrossEntropy(Loss):
    """Cross-entropy of yes-or-no scores, each with its own label."""

    name = "binary-cross-entropy"
    needs = frozenset({Need.LABELS})
    positive_weight: float = knob(1.0, Float(1e-3, 1e3, log=True), help="what a missed yes costs against a false one")
    scores: str = knob(
        "logits", Choice("logits", "probabilities"), help="what the output holds: scores before the sigmoid, or after"
    )
    output: str = knob("", Text("name of an output"), help="output with the scores; empty takes the first that fits")

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        if batch.labels is None:
            raise DataError(
                "the loss 'binary-cross-entropy' needs labels: add them to the data, or choose another loss"
            )
        labels = np.asarray(batch.labels)
        fitting = [key for key, y in outputs.items() if y.size == labels.size and self.output in ("", key)]
        if not fitting:
            shown = ", ".join(f"{key} {list(y.shape)}" for key, y in outputs.items())
            raise DataError(
                f"labels of shape {list(labels.shape)} fit no output ({shown}) for the loss 'binary-cross-entropy': "
                f"give one label from 0 to 1 for each score"
            )
        name = fitting[0]
        z = outputs[name].astype(np.result_type(outputs[name].dtype, np.float32), copy=False)
        t = labels.reshape(z.shape).astype(z.dtype)
        if (t > 1).any():
            raise DataError(f"label {t.max():g} is not from 0 to 1, as the loss 'binary-cross-entropy' needs")
        counted = t >= 0
        yes, no = self.positive_weight * t * counted, (1 - t) * counted
        many = max(1, int(counted.sum()))
        value, slope = _of_probabilities(z, yes, no) if self.scores == "probabilities" else _of_logits(z, yes, no)
        return value / many, {name: slope / many}


def _of_logits(z: Array, yes: Array, no: Array) -> tuple[float, Array]:
    zero = np.zeros((), z.dtype)
    value = (yes * np.logaddexp(zero, -z) + no * np.logaddexp(zero, z)).sum()
    sigmoid = 0.5 * (1 + np.tanh(0.5 * z))
    return float(value), no * sigmoid - yes * (1 - sigmoid)


def _of_probabilities(p: Array, yes: Array, no: Array) -> tuple[float, Array]:
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(-(yes * np.log(p) + no * np.log1p(-p)).sum()), no / (1 - p) - yes / p


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield BinaryCrossEntropy
