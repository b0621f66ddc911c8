"""Attribution: how much every element of a value matters for what the teacher answers.

With S what the teacher answers and a the value,

    gradient      |a dS/da|                              (gradient times input)
    integrated    |a mean over k of dS/da at (k / m) a|  (integrated gradients, Sundararajan et al., ICML 2017)

S is the score of the answer, the highest along the last axis of an output, summed over positions, samples and outputs;
of an embedding, whose rows have length one and no classes, it is the sum of the magnitudes. The result is divided by
its mean over each sample, so that it weighs and does not scale.

Gradients of values inside a graph are had by adding a probe to each: an input that is fed zeros. dS/d(probe) is dS/da.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.autograd import Tape
from pumice.distil.taps import named_values
from pumice.model import clone, fresh_name
from pumice.ops.dtypes import wide
from pumice.train.application import trainable_plan

if TYPE_CHECKING:
    from pumice.ops.record import Placement

Array = NDArray[Any]
STEPS = 8
"""Points along the path of integrated gradients."""


@attrs.frozen(eq=False)
class Attribution:
    """Attributions of named values of a teacher."""

    tape: Tape
    probes: Mapping[str, str]
    """The probe of each value."""
    outputs: tuple[str, ...]
    placement: Placement | None = None
    """Where gradients are computed; the CPU if there is none."""

    @classmethod
    def of(cls, teacher: ir.Model, values: Sequence[str], placement: Placement | None = None) -> Attribution:
        """
        Raises:
            UnsupportedOp: an operator between a value and the output has no gradient.
        """
        probed = clone(teacher)
        known = named_values(probed)
        probes = {name: _probe(probed, known[name]) for name in dict.fromkeys(values)}
        probed.graph.sort()
        outputs = tuple(str(y.name) for y in probed.graph.outputs if y.dtype is None or y.dtype.is_floating_point())
        plan = trainable_plan(probed, list(outputs), placement=placement)
        return cls(Tape(plan, probes.values()), probes, outputs, placement)

    def run(self, feeds: Mapping[str, Array], values: Mapping[str, Array], method: str) -> dict[str, Array]:
        """The importance of every element of `values`, which the teacher has for these feeds; 1 on the average.

        It lies where the values lie.
        """
        if self.placement is None:
            return self._importances(feeds, values, method)
        bring, here = self.placement.bring, all(isinstance(value, np.ndarray) for value in values.values())
        fed, known = ({name: bring(array) for name, array in arrays.items()} for arrays in (feeds, values))
        found = self._importances(fed, known, method)
        return {name: self.placement.fetch(array) for name, array in found.items()} if here else found

    def _importances(self, feeds: Mapping[str, Array], values: Mapping[str, Array], method: str) -> dict[str, Array]:
        if method == "gradient":
            gradients = self._gradients(feeds, values, {})
            return {name: _importance(value, gradients[name]) for name, value in values.items()}
        found = {}
        for name, value in values.items():
            moved = [value * value.dtype.type(step / STEPS - 1) for step in range(1, STEPS + 1)]
            along = [self._gradients(feeds, values, {name: by})[name] for by in moved]
            found[name] = _importance(value, sum(along[1:], along[0]) / STEPS)
        return found

    def _gradients(
        self, feeds: Mapping[str, Array], values: Mapping[str, Array], moved: Mapping[str, Array]
    ) -> dict[str, Array]:
        zeros = {probe: np.zeros_like(values[name]) for name, probe in self.probes.items()}
        outputs, pull = self.tape.forward({**feeds, **zeros, **{self.probes[name]: by for name, by in moved.items()}})
        found = pull({name: _score_gradient(outputs[name]) for name in self.outputs})
        return {name: wide(found[probe]) for name, probe in self.probes.items()}


def _probe(model: ir.Model, value: ir.Value) -> str:
    """Everything that read the value reads its sum with a new input."""
    probe = ir.Value(name=fresh_name(model, f"{value.name}/probe"), shape=value.shape, type=value.type)
    node = ir.node("Add", [value, probe])
    node.outputs[0].name = fresh_name(model, f"{value.name}/probed")
    for use in list(value.uses()):
        if use.node is not node:
            use.node.replace_input_with(use.idx, node.outputs[0])
    model.graph.append(node)
    model.graph.inputs.append(probe)
    return str(probe.name)


def _score_gradient(output: Array) -> Array:
    """Of the highest score of every position; of an embedding, the signs."""
    if _is_embedding(output):
        return np.sign(output)
    highest: Array = (output == output.max(axis=-1, keepdims=True)).astype(output.dtype)
    return highest


def _is_embedding(output: Array) -> bool:
    """Rows of length one."""
    return bool(np.allclose(np.square(wide(output)).sum(axis=-1), 1, atol=1e-2))


def _importance(value: Array, gradient: Array) -> Array:
    found = np.abs(wide(value) * gradient)
    mean = found.reshape(len(found), -1).mean(axis=1).reshape(-1, *[1] * (found.ndim - 1))
    return np.where(mean > 0, found / np.where(mean > 0, mean, 1), 1)
