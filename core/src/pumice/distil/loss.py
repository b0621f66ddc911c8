"""What a distillation loss compares: values of the student with what the teacher has in their place.

A loss sees pairs of arrays, nothing of the models. With s_i the student's value of pair i, t_i the teacher's and w_i
what the teacher cares about in it,

    loss = mean over i of compare(s_i, (t_i, w_i))          gradient d compare / d s_i / pairs

What is paired depends on `compares`: the outputs; the features at the ends of the layers; the attention maps; or the
values that attention reads. Where `same_width` is set, core joins values of different widths by a connector first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError
from pumice.knobs import Float, Names, knob
from pumice.strategy import Loss, Need

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.train import Parameters
    from pumice.train.feeding import Feeder

Array = NDArray[Any]


def channel_axis(value: Array) -> int:
    """Where the channels of a value lie: on axis 1 of pictures (N, C, H, W), else on the last."""
    return 1 if value.ndim > 3 else value.ndim - 1


def pooled(value: Array) -> Array:
    """(samples, channels): the mean over positions."""
    last = np.moveaxis(value, channel_axis(value), -1)
    mean: Array = last.reshape(len(value), -1, last.shape[-1]).mean(axis=1)
    return mean


def spread(grad: Array, like: Array) -> Array:
    """The gradient of `pooled`: that of the mean, (samples, channels), at every position of a value."""
    shape = [1] * like.ndim
    shape[0], shape[channel_axis(like)] = grad.shape
    positions = like[0].size // grad.shape[1]
    return np.broadcast_to(grad.reshape(shape) / positions, like.shape).copy()


def number(value: Any) -> Any:
    """A number of NumPy as Python's; one that lies on a device stays there."""
    return float(value) if isinstance(value, np.generic) else value


@attrs.frozen(eq=False)
class Target:
    """What the teacher has for one value of the student."""

    value: Array
    """In the shape of the student's value, where the loss asks for the same width."""
    importance: Array | None = None
    """How much every element matters to the teacher, 1 on the average of each sample; for a loss with attribution."""
    mask: Array | None = None
    """(N, tokens): 1 at tokens and 0 at padding; for a loss that names the input that says so."""


@attrs.frozen(kw_only=True, eq=False)
class TaughtBatch:
    """A batch, and what the teacher says about it."""

    targets: Mapping[str, Target]
    """By the name of the student's value."""
    progress: float = 0.0
    """The share of the training that is behind, for schedules."""
    feeds: Mapping[str, Array] = attrs.field(factory=dict)
    labels: Any = None
    size: int = 1
    samples: Any = None
    """What the student has generated, where the batch is that (`SampledLoss`)."""


@attrs.frozen(kw_only=True)
class DistillationLoss(Loss):
    """Base of losses that compare a student with its teacher: a subclass writes `compare`."""

    needs = frozenset({Need.TEACHER})
    compares: ClassVar[str] = "outputs"
    """`outputs`, `features`, `attention` or `values`: what is compared where `at` says nothing."""
    same_width: ClassVar[bool] = True
    """Whether both values must have the same shape."""
    on_device: ClassVar[bool] = False
    """Whether `compare` takes arrays of any device, and returns a loss that lies there."""

    weight: float = knob(1.0, Float(0.0, 1e9), help="share of this loss in the sum")
    until: float = knob(1.0, Float(0.0, 1.0), help="share of the training after which this loss is switched off")
    at: tuple[str, ...] = knob(
        (), Names(), help="what to compare: student's values, or student=teacher; empty finds it"
    )

    @property
    def attribution(self) -> str:
        """How `Target.importance` is found: `gradient`, `integrated`, or empty where the loss does not read it."""
        return ""

    @property
    def mask(self) -> str:
        """The input that is 1 at tokens and 0 at padding, for `Target.mask`; empty where the loss does not read it."""
        return ""

    def compare(self, student: Array, target: Target, progress: float) -> tuple[Any, Array]:
        """The loss of one pair, averaged over its samples, and its gradient in the shape of `student` (float32 or 64).

        `progress` is the share of the training that is behind.
        """
        raise NotImplementedError

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[Any, dict[str, Array]]:
        total, grads = 0.0, dict[str, Array]()
        targets: Mapping[str, Target] = batch.targets
        for name, target in targets.items():
            student = outputs[name].astype(np.result_type(outputs[name].dtype, np.float32), copy=False)
            if self.same_width and student.shape != target.value.shape:
                raise DataError(
                    f"the loss '{self.name}' compares values of one shape, but '{name}' is {list(student.shape)} and "
                    f"the teacher's {list(target.value.shape)}: name other values with the knob 'at'"
                )
            value, grad = self.compare(student, target, batch.progress)
            total += value / len(targets)
            grads[name] = grad / len(targets)
        return total, grads


@attrs.frozen(kw_only=True)
class SampledLoss(DistillationLoss):
    """Base of losses on what the student generates itself: they see those batches only, and other losses the data."""

    def feeder(self, data: Feeder, student: ir.Model, teacher: ir.Model, parameters: Parameters) -> Feeder:
        """What each step learns from: the batches of `data`, and such as the student generates.

        The latter have an attribute `samples`, which `value_and_grad` finds in its batch. `parameters` are the
        student's, read whenever it generates.
        """
        raise NotImplementedError
