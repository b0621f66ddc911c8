"""What an importance scorer owes: one finite score a channel, which does not depend on the channels' order."""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.prune import find_groups
from pumice.prune.scoring import ScoringContext, layer_scores
from pumice.strategy import ImportanceScorer, Loss
from pumice.testing.models import random_feeds, tiny_cnn
from pumice.testing.strategy import StrategyContract


@attrs.frozen
class Filters:
    """A stand-in for the context of a pruning step: one channel group whose arrays are given."""

    array: NDArray[np.float32]

    def weights(self, group: Any) -> NDArray[np.float32]:
        """What the group's channels weigh: (channels, weights per channel)."""
        return self.array

    def gradients(self, group: Any) -> NDArray[np.float32]:
        """Their gradients, in the same shape."""
        return np.cos(self.array)

    def activations(self, group: Any) -> NDArray[np.float32]:
        """What the channels put out: (samples, channels)."""
        return np.maximum(self.array.T, 0)

    def readers(self, group: Any) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """What weights that read the channels are given, (samples, channels), and the weights: (channels, columns)."""
        return [(self.activations(group), self.array)]

    def pairwise_distances(self, filters: NDArray[Any], norm: str) -> NDArray[Any]:
        """Distances between rows, (channels, channels), by the norm `l1` or `l2`."""
        difference = filters[:, None] - filters[None]
        return np.asarray(np.linalg.norm(difference, ord={"l1": 1, "l2": 2}[norm], axis=2))


@attrs.frozen(kw_only=True)
class _Sum(Loss):
    """The sum of the outputs: a loss for which no plugin need be installed."""

    name = "sum"

    def value_and_grad(self, outputs: Mapping[str, NDArray[Any]], batch: Any) -> tuple[float, dict[str, NDArray[Any]]]:
        return sum(float(y.sum()) for y in outputs.values()), {name: np.ones_like(y) for name, y in outputs.items()}


class ScorerContract(StrategyContract[ImportanceScorer]):
    """Needs nothing but `strategy`."""

    def filters(self) -> NDArray[np.float32]:
        """The weights to score: (channels, weights per channel)."""
        return np.random.default_rng(5).standard_normal((8, 27)).astype(np.float32)

    def scores(self, filters: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self.make().score(None, Filters(filters)))

    def test_every_channel_gets_one_finite_score(self) -> None:
        scores = self.scores(self.filters())
        assert scores.shape == (8,), f"scores must have shape (channels,), not {scores.shape}"
        assert np.isfinite(scores).all()

    def test_the_order_of_channels_does_not_matter(self) -> None:
        filters, order = self.filters(), np.random.default_rng(1).permutation(8)
        np.testing.assert_allclose(self.scores(filters[order]), self.scores(filters)[order], rtol=1e-5)

    def test_the_same_channels_get_the_same_scores(self) -> None:
        np.testing.assert_array_equal(self.scores(self.filters()), self.scores(self.filters()))

    def test_it_scores_every_group_of_a_network(self) -> None:
        model = tiny_cnn()
        found = find_groups(model)
        feeds = [(feed, np.array([0])) for feed in random_feeds(4, size=1)]
        data = open_dataset(feeds, model)
        context = ScoringContext(
            wiring=found.wiring, runtime=pick_runtime(None), calibration=data, training=data, loss=_Sum()
        )
        assert found.free
        for group in found.free:
            assert layer_scores(self.make(), group, context, "mean").shape == (group.channels,)

    def test_the_weights_are_left_unchanged(self) -> None:
        filters = self.filters()
        self.scores(filters)
        np.testing.assert_array_equal(filters, self.filters())
