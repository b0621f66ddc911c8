"""What an importance scorer can look at: weights, gradients and activations of a group, channel by channel.

A group has several weights that write its channels; a scorer sees one at a time (`context.layer`), and the step joins
what it says about each. Scores of different layers have different scales, so they are normalised before layers compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.errors import DataError, ModelError
from pumice.model import constant
from pumice.ops.channels import Cellwise
from pumice.prune.closure import UNKNOWN
from pumice.prune.groups import ChannelGroup, Member
from pumice.prune.reading import Array, Values, reader_of, readers, summed
from pumice.prune.wiring import Place, Wiring

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.strategy import ImportanceScorer, Loss, Runtime


SAMPLES = 64
"""Samples that gradients are averaged over at most."""


@attrs.frozen(kw_only=True, eq=False)
class ScoringContext:
    """What a scorer is given beside the group."""

    wiring: Wiring
    runtime: Runtime
    seed: int = 0
    calibration: Dataset | None = None
    training: Dataset | None = None
    loss: Loss | None = None
    layer: Member | None = None
    """The weight looked at."""
    _cache: dict[str, Any] = attrs.field(factory=dict)

    def weights(self, group: ChannelGroup) -> Array:
        """The weights of the layer looked at: (channels, weights per channel)."""
        return self._rows(self._member(group), group)

    def gradients(self, group: ChannelGroup) -> Array:
        """The gradient of the loss with respect to them, in the same shape, averaged over samples.

        Raises:
            DataError: there are no labelled data.
        """
        name = self._member(group).place.value
        return rows(self._gradients()[name], self._member(group), group.channels)

    def activations(self, group: ChannelGroup) -> Array:
        """What the channels put out where they are read: (positions, channels), a regular selection of at most 4096.

        Raises:
            DataError: there are no calibration data.
        """
        found = self._activations()
        read = {member.place: member for member in group.members}
        key = next((place for place in read if place in found), None)
        if key is None:
            raise ModelError(f"the activations of '{group.name}' are read nowhere: use a scorer of weights for it")
        return self._columns(found[key], read[key], group)

    def readers(self, group: ChannelGroup) -> list[tuple[Array, Array]]:
        """What every weight that sums over the channels is given, and the weight itself.

        Pairs of (positions, channels), a regular selection of the calibration data, and (channels, weights a channel);
        where a channel has several positions on the axis, they count as positions of the data.

        Raises:
            DataError: there are no calibration data.
        """
        found = self._activations()
        by_place = {member.place: member for member in group.members}
        return [
            (self._columns(found[source], by_place[source], group), self._rows(by_place[weight], group))
            for source, weight in readers(self.wiring, by_place)
            if source in found
        ]

    def _columns(self, values: Array, member: Member, group: ChannelGroup) -> Array:
        """(positions, size of the axis) -> (positions, channels)."""
        along = attrs.evolve(member, place=Place(member.place.value, 1))
        return rows(values, along, group.channels).T

    def _rows(self, member: Member, group: ChannelGroup) -> Array:
        held = constant(self.wiring.values[member.place.value])
        assert held is not None
        return rows(held, member, group.channels)

    def pairwise_distances(self, filters: Array, norm: str) -> Array:
        """Distances between rows, (channels, channels), by the norm `l1` or `l2`."""
        if norm == "l1":
            return np.stack([np.abs(filters - row).sum(axis=1) for row in filters])
        squares = (filters.astype(np.float64) ** 2).sum(axis=1)
        products = filters.astype(np.float64) @ filters.T.astype(np.float64)
        return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)))

    def _member(self, group: ChannelGroup) -> Member:
        return self.layer or (group.writers or group.readers)[0]

    def _activations(self) -> Values:
        """Every value that is summed over along an axis: (positions, size of the axis)."""
        if "activations" not in self._cache:
            self._cache["activations"] = reader_of(self.calibration, self.runtime)(
                self.wiring.model, summed(self.wiring)
            )
        return self._cache["activations"]  # type: ignore[no-any-return]

    def _gradients(self) -> Mapping[str, Array]:
        if "gradients" not in self._cache:
            self._cache["gradients"] = _mean_gradients(self.wiring, self.training or self.calibration, self.loss)
        return self._cache["gradients"]  # type: ignore[no-any-return]


def rows(array: Array, member: Member, channels: int) -> Array:
    """The elements of each channel as a row; channels with fewer positions than others are filled up with zeros."""
    axis = member.place.axis
    if isinstance(axis, Cellwise):
        array, axis = np.concatenate(np.split(array, axis.cells), axis.axis), axis.axis
    flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    counts = np.bincount(member.index[member.index != UNKNOWN], minlength=channels)
    found = np.zeros((channels, counts.max(), flat.shape[1]), flat.dtype)
    order = np.argsort(member.index, kind="stable")
    order = order[member.index[order] != UNKNOWN]
    place = np.concatenate([np.arange(n) for n in counts])
    found[member.index[order], place] = flat[order]
    return found.reshape(channels, -1)


def layer_scores(scorer: ImportanceScorer, group: ChannelGroup, context: ScoringContext, join: str) -> Array:
    """The scores of a group's channels: of each writing weight, joined by `sum`, `mean` or `max`.

    Raises:
        ModelError: a scorer gives something else than one finite number a channel.
    """
    found = []
    for member in group.writers or group.readers:
        scores = np.asarray(scorer.score(group, attrs.evolve(context, layer=member)), np.float64)
        if scores.shape != (group.channels,) or not np.isfinite(scores).all():
            raise ModelError(
                f"importance scorer '{scorer.name}' must give {group.channels} finite scores for '{group.name}', "
                f"not an array of shape {list(scores.shape)}; report it to its author"
            )
        found.append(scores)
    joins: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max}
    return np.asarray(joins[join](found, axis=0))


def normalised(scores: Array, by: str) -> Array:
    """Scores on a scale that layers share: divided by their mean, largest or length; `rank` from 0 to 1."""
    if by == "rank":
        return np.asarray(np.argsort(np.argsort(scores, kind="stable"), kind="stable") / max(len(scores) - 1, 1))
    scales: dict[str, Callable[[Array], Any]] = {
        "none": lambda s: 1.0, "mean": np.mean, "max": np.max, "l2": np.linalg.norm,
    }  # fmt: skip
    scale = float(scales[by](scores))
    return scores / scale if scale > 0 else scores


def _mean_gradients(wiring: Wiring, data: Dataset | None, loss: Loss | None) -> dict[str, Array]:
    from pumice.autograd import Tape
    from pumice.train.application import default_loss, trainable_plan

    if data is None or not data.labelled:
        raise DataError("gradients need labelled data: give them with --data (data=), or use a scorer of weights")
    loss = loss or default_loss(data)
    plan = trainable_plan(wiring.model)
    names = [
        name
        for name in plan.initializers
        if len(wiring.values[name].shape or ()) > 1 and wiring.values[name].dtype.is_floating_point()  # type: ignore[union-attr]
    ]
    tape = Tape(plan, names)
    total: dict[str, Array] = {}
    count = 0
    for batch in data.batches(16, limit=SAMPLES):
        outputs, pull = tape.forward(batch.feeds)
        _, grads = loss.value_and_grad(outputs, batch)
        for name, gradient in pull(grads).items():
            total[name] = total.get(name, 0) + gradient * batch.size
        count += batch.size
    return {name: np.asarray(total.get(name, np.zeros(wiring.values[name].shape.numpy()))) / count for name in names}  # type: ignore[union-attr]
