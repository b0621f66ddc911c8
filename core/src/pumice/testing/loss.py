"""What a loss owes: a finite value, and the gradient that central differences find."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice.strategy import Loss
from pumice.testing.strategy import StrategyContract

STEP = 1e-6


class LossContract(StrategyContract[Loss]):
    """Give `batch`: what the loss reads beside the outputs (labels, a teacher's outputs)."""

    tolerance: ClassVar[float] = 1e-5

    def outputs(self) -> dict[str, NDArray[np.float64]]:
        """The model's outputs at which the gradient is checked."""
        return {"logits": np.random.default_rng(3).standard_normal((4, 5))}

    def batch(self) -> Any:
        """What accompanies the outputs."""
        raise NotImplementedError

    def value(self, outputs: dict[str, NDArray[np.float64]]) -> float:
        return self.make().value_and_grad(outputs, self.batch())[0]

    def test_the_value_is_finite(self) -> None:
        assert np.isfinite(self.value(self.outputs()))

    def test_the_gradient_is_that_of_central_differences(self) -> None:
        outputs = self.outputs()
        _, gradients = self.make().value_and_grad(outputs, self.batch())
        assert gradients, "a loss must depend on some output"
        for name, gradient in gradients.items():
            assert gradient.shape == outputs[name].shape
            numeric = np.empty_like(outputs[name])
            for index in np.ndindex(*numeric.shape):
                ahead, behind = ({**outputs, name: _moved(outputs[name], index, step)} for step in (STEP, -STEP))
                numeric[index] = (self.value(ahead) - self.value(behind)) / (2 * STEP)
            np.testing.assert_allclose(gradient, numeric, rtol=self.tolerance, atol=self.tolerance)

    def test_the_outputs_are_left_unchanged(self) -> None:
        outputs = self.outputs()
        self.value(outputs)
        np.testing.assert_equal(outputs, self.outputs())


def _moved(array: NDArray[np.float64], index: tuple[int, ...], step: float) -> NDArray[np.float64]:
    moved = array.copy()
    moved[index] += step
    return moved
