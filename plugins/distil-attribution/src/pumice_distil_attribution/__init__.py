"""Features transferred in proportion to how much they matter for what the teacher answers.

    loss = mean w (s - t)^2 / mean w t^2

where w is the attribution of every element of the teacher's features t, found by core: gradient times input, or
integrated gradients; 1 on the average of a sample. It may be averaged over positions, so that it says which channels
matter, or over channels, so that it says which places or tokens do. What does not move the teacher's answer may then
differ. Channels are on axis 1 of pictures (N, C, H, W), else on the last axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Choice, DistillationLoss, Loss, hookimpl, knob
from pumice.distil.loss import Target, channel_axis, number
from pumice.errors import DataError

Array = NDArray[Any]
SMALLEST = 1e-12


@attrs.frozen(kw_only=True)
class Attribution(DistillationLoss):
    """Mean squared difference of the features, weighted by what matters to the teacher."""

    name = "attribution"
    compares = "features"
    on_device = True
    method: str = knob("gradient", Choice("gradient", "integrated"), help="how it is found what matters")
    over: str = knob("elements", Choice("elements", "channels", "places"), help="what is told apart by how it matters")

    @property
    def attribution(self) -> str:
        return self.method

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        if target.importance is None:
            raise DataError("the loss 'attribution' was given no attributions: use it in the step 'distil'")
        weights = self._weights(target.importance)
        difference = student - target.value
        scale = number((weights * np.square(target.value)).mean()) + SMALLEST
        value = number((weights * np.square(difference)).mean()) / scale
        return value, weights * difference * (2 / (difference.size * scale))

    def _weights(self, importance: Array) -> Array:
        channels = channel_axis(importance)
        places = tuple(axis for axis in range(1, importance.ndim) if axis != channels)
        averaged = {"channels": places, "places": (channels,)}.get(self.over, ())
        return importance.mean(axis=averaged, keepdims=True) if averaged else importance


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield Attribution
