"""Losses of real-valued outputs: the mean squared error and the cosine distance to labels of the output's shape.

    mse       mean over elements of (y - t)^2                          gradient 2 (y - t) / elements
    cosine    mean over rows of 1 - <y, t> / (|y| |t|)                 gradient (y^ <y^, t^> - t^) / (|y| rows)

with y^ = y / |y| along the last axis. A row of length zero has the distance 1 and no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Loss, Need, Text, hookimpl, knob
from pumice.errors import DataError, nearest

Array = NDArray[Any]


@attrs.frozen(kw_only=True)
class _Regression(Loss):
    """Base: the output, and labels brought to its shape."""

    needs = frozenset({Need.LABELS})
    output: str = knob(
        "", Text("name of an output"), help="output to compare; empty takes the first of the labels' size"
    )

    def pair(self, outputs: Mapping[str, Array], batch: Any) -> tuple[str, Array, Array]:
        if batch.labels is None:
            raise DataError(f"the loss '{self.name}' needs labels: add them to the data, or choose another loss")
        labels = np.asarray(batch.labels)
        fitting = [name for name, y in outputs.items() if y.size == labels.size and len(y) == len(labels)]
        name = self.output or next(iter(fitting), "")
        if self.output and self.output not in outputs:
            raise DataError(
                f"the loss '{self.name}' is set to output '{name}', which the model lacks{nearest(name, outputs)}"
            )
        if name not in fitting:
            shown = ", ".join(f"{key} {list(y.shape)}" for key, y in outputs.items())
            raise DataError(
                f"labels of shape {list(labels.shape)} fit no output ({shown}) for the loss '{self.name}': give one "
                f"number for each of the output's"
            )
        y = outputs[name].astype(np.result_type(outputs[name].dtype, np.float32), copy=False)
        return name, y, labels.reshape(y.shape).astype(y.dtype)


@attrs.frozen(kw_only=True)
class Mse(_Regression):
    """Mean squared difference from the labels."""

    name = "mse"

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        name, y, target = self.pair(outputs, batch)
        difference = y - target
        return float(np.square(difference).mean()), {name: difference * (2 / difference.size)}


@attrs.frozen(kw_only=True)
class CosineDistance(_Regression):
    """One minus the cosine similarity to the labels, along the last axis."""

    name = "cosine"

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        name, y, target = self.pair(outputs, batch)
        length, wanted = (np.linalg.norm(v, axis=-1, keepdims=True) for v in (y, target))
        there = (length > 0) & (wanted > 0)
        unit, goal = y / np.where(length > 0, length, 1), target / np.where(wanted > 0, wanted, 1)
        similarity = (unit * goal).sum(axis=-1, keepdims=True)
        rows = similarity.size
        grad = np.where(there, (unit * similarity - goal) / np.where(length > 0, length, 1), 0) / rows
        return float((1 - similarity).mean()), {name: grad}


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield Mse
    yield CosineDistance
