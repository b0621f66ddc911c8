"""What a sparsifier owes: zeros where the pattern has them and no more, finite weights, arguments left alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.prune.sparsity import Pattern
from pumice.strategy import Sparsifier
from pumice.testing.strategy import StrategyContract

HALF = Pattern(ratio=0.5)
PATTERNS = (HALF, Pattern.of("2:4", 0.0), Pattern.of("1:4", 0.0))


class SparsifierContract(StrategyContract[Sparsifier]):
    """Needs nothing but `strategy`."""

    def layer(self, inputs: int = 32) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weights (outputs, inputs), and second moments of inputs that are correlated and of different strengths."""
        draws = np.random.default_rng(3)
        given = draws.standard_normal((500, inputs)) @ (draws.standard_normal((inputs, inputs)) + np.eye(inputs))
        given = given * np.geomspace(0.1, 3.0, inputs)
        return draws.standard_normal((16, inputs)), given.T @ given / 500 + 0.01 * np.eye(inputs)

    def test_the_pattern_holds(self) -> None:
        for pattern in PATTERNS:
            found = self.make().sparsified(*self.layer(), pattern)
            assert found.shape == (16, 32)
            assert np.isfinite(found).all()
            assert (found == 0).mean() == pattern.ratio, f"{pattern} asks for {pattern.ratio:.0%} zeros"
            if pattern.run:
                stays = (found != 0).reshape(-1, pattern.run).sum(axis=1)
                assert (stays == round((1 - pattern.ratio) * pattern.run)).all(), f"a run keeps more than {pattern}"

    def test_inputs_need_not_be_whole_runs(self) -> None:
        for pattern in PATTERNS:
            found = self.make().sparsified(*self.layer(27), pattern)
            assert found.shape == (16, 27)
            assert 0.3 < (found == 0).mean() < 0.8

    def test_it_works_without_data(self) -> None:
        weights, _ = self.layer()
        assert (self.make().sparsified(weights, None, HALF) == 0).mean() == 0.5

    def test_what_it_is_given_is_left_unchanged(self) -> None:
        weights, moments = self.layer()
        before = weights.copy(), moments.copy()
        self.make().sparsified(weights, moments, PATTERNS[1])
        np.testing.assert_array_equal(weights, before[0])
        np.testing.assert_array_equal(moments, before[1])
