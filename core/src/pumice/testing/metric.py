"""What a metric owes: one finite score a sample, which depends on that sample alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.strategy import Metric
from pumice.testing.strategy import StrategyContract

SAMPLES = 12


class MetricContract(StrategyContract[Metric]):
    """Override `batch` for outputs that are not logits of ten classes."""

    def batch(self, rng: np.random.Generator) -> tuple[dict[str, NDArray[Any]], Any, dict[str, NDArray[Any]]]:
        """(outputs, labels, the original model's outputs) of `SAMPLES` samples; arrays have the samples first."""
        logits = rng.standard_normal((SAMPLES, 10)).astype(np.float32)
        nearby = logits + rng.standard_normal(logits.shape).astype(np.float32)
        return {"logits": nearby}, rng.integers(0, 10, SAMPLES), {"logits": logits}

    def scores(self, order: NDArray[Any] | slice = slice(None)) -> NDArray[Any]:
        """The metric's scores of the samples of one batch in an order."""
        outputs, labels, reference = self.batch(np.random.default_rng(7))
        return self.make().score(
            {name: array[order] for name, array in outputs.items()},
            None if labels is None else np.asarray(labels)[order],
            {name: array[order] for name, array in reference.items()},
        )

    def test_every_sample_gets_one_finite_score(self) -> None:
        scores = np.asarray(self.scores())
        assert scores.shape == (SAMPLES,), f"scores must have shape (samples,), not {scores.shape}"
        assert scores.dtype.kind == "f", f"scores must be floats, not {scores.dtype}"
        assert np.isfinite(scores).all()

    def test_the_order_of_samples_does_not_matter(self) -> None:
        order = np.random.default_rng(1).permutation(SAMPLES)
        np.testing.assert_allclose(self.scores(order), np.asarray(self.scores())[order], rtol=1e-6)

    def test_the_size_of_a_batch_does_not_matter(self) -> None:
        halves = [self.scores(slice(0, 5)), self.scores(slice(5, SAMPLES))]
        np.testing.assert_allclose(np.concatenate(halves), self.scores(), rtol=1e-6)

    def test_what_it_is_given_is_left_unchanged(self) -> None:
        outputs, labels, reference = self.batch(np.random.default_rng(7))
        before = [array.copy() for array in (*outputs.values(), *reference.values())]
        self.make().score(outputs, labels, reference)
        np.testing.assert_equal([*outputs.values(), *reference.values()], before)

    def test_a_model_agrees_with_itself_at_least_as_well_as_with_another(self) -> None:
        if not self.strategy.fidelity:
            return
        outputs, labels, reference = self.batch(np.random.default_rng(7))
        made = self.make()
        own, other = (np.mean(made.score(o, labels, reference)) for o in (reference, outputs))
        assert own >= other if self.strategy.higher_is_better else own <= other
