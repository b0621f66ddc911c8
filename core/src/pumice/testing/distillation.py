"""What a distillation loss owes: all that a loss owes, nothing to correct in a student that equals its teacher."""

from typing import Any, ClassVar, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.distil.loss import DistillationLoss, Target, TaughtBatch
from pumice.testing.loss import LossContract

SHAPES = {"outputs": (4, 5), "features": (4, 3, 2, 2), "attention": (2, 2, 3, 3), "values": (2, 2, 3, 4)}
WIDER = {"outputs": (4, 5), "features": (4, 6, 2, 2), "attention": (2, 4, 3, 3), "values": (2, 4, 3, 4)}


class DistillationLossContract(LossContract):
    """Give `strategy`; `exact` is False for a loss that a student equal to its teacher does not minimise."""

    exact: ClassVar[bool] = True

    def compares(self) -> str:
        """`outputs`, `features`, `attention` or `values`."""
        return cast(type[DistillationLoss], self.strategy).compares

    def outputs(self) -> dict[str, NDArray[np.float64]]:
        return {"value": self._values(SHAPES[self.compares()], 3)}

    def target(self) -> Target:
        """What the teacher has in place of `value`."""
        same = cast(type[DistillationLoss], self.strategy).same_width
        value = self._values((SHAPES if same else WIDER)[self.compares()], 4)
        return Target(value, np.random.default_rng(5).uniform(0.1, 2, value.shape))

    def batch(self) -> Any:
        return TaughtBatch(targets={"value": self.target()}, progress=0.25)

    def test_a_student_that_equals_its_teacher_has_nothing_to_correct(self) -> None:
        outputs = self.outputs()
        same = TaughtBatch(targets={"value": attrs.evolve(self.target(), value=outputs["value"])})
        if self.target().value.shape != outputs["value"].shape:
            same = TaughtBatch(targets={"value": Target(outputs["value"])})
        value, gradients = self.make().value_and_grad(outputs, same)
        if self.exact:
            assert value < self.value(outputs)
            np.testing.assert_allclose(_tangent(gradients["value"], self.compares()), 0, atol=1e-7)

    def test_pairs_count_alike(self) -> None:
        outputs, target = self.outputs(), self.target()
        twice = TaughtBatch(targets={"value": target, "again": target}, progress=0.25)
        value, gradients = self.make().value_and_grad({**outputs, "again": outputs["value"]}, twice)
        np.testing.assert_allclose(value, self.value(outputs))
        np.testing.assert_allclose(gradients["again"], gradients["value"])

    def test_it_stays_finite_in_float32_for_values_far_apart(self) -> None:
        shape = self.outputs()["value"].shape
        if self.compares() != "attention":
            outputs = {"value": (1e3 * self._values(shape, 6)).astype(np.float32)}
            value, gradients = self.make().value_and_grad(outputs, self.batch())
            assert np.isfinite(value)
            assert np.isfinite(gradients["value"]).all()

    def _values(self, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
        drawn = np.random.default_rng(seed).standard_normal(shape)
        if self.compares() != "attention":
            return drawn
        powers = np.exp(drawn)
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _tangent(gradient: NDArray[np.float64], compares: str) -> NDArray[np.float64]:
    """The part that matters: along a row of probabilities a constant moves nothing."""
    return gradient - gradient.mean(axis=-1, keepdims=True) if compares == "attention" else gradient
