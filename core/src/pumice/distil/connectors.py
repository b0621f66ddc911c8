"""Connectors: how a value of the student is compared with a wider or narrower one of the teacher.

    learned    s' = s W along the channels: a product for (..., channels), a 1 x 1 convolution for (N, channels, ...)
    kept       s' = s, and of the teacher only the channels that the student has kept
    none       the widths agree

A student made by pruning remembers which channels of the teacher its weights kept; the channel group that a value
belongs to carries that over to the value, so that the two can be compared without anything learned. A learned connector
is part of the training graph only: it is trained with the student and left behind. It begins as a random projection
that keeps lengths, drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.distil.taps import Pair, channel_axis, named_values, width
from pumice.errors import ModelError
from pumice.model import add_initializer, fresh_name
from pumice.ops.gradient import namespace
from pumice.prune import Groups, find_groups, kept_indices
from pumice.prune.closure import UNKNOWN

Array = NDArray[Any]
Remembered = Mapping[str, Mapping[int, list[int]]]
"""Of initializers, by axis, the indices of the original that they kept."""


@attrs.frozen(eq=False)
class Connection:
    """A pair brought to one width."""

    student: str
    """The value to compare: the student's own, or the connector's."""
    teacher: str
    axis: int = -1
    kept: Array | None = None
    """Positions along `axis` of the teacher's value that are compared; None: all."""

    def seen(self, value: Array) -> Array:
        """What of the teacher's value is compared."""
        return value if self.kept is None else np.take(value, namespace(value).asarray(self.kept), self.axis)


@attrs.define(eq=False)
class Connectors:
    """Connects pairs; adds learned connectors to the student's training graph, one for all losses that need it."""

    student: ir.Model
    """Changed in place."""
    teacher: ir.Model
    mode: str = "auto"
    """`learned`, `kept`, or `auto`: kept where the student remembers what it kept, else learned."""
    seed: int = 0
    _learned: dict[tuple[str, int], str] = attrs.field(factory=dict)
    _groups: Groups | None = None

    def connect(self, pair: Pair, *, same_width: bool) -> Connection:
        """
        Raises:
            ModelError: widths that are not known, or, for `kept`, not remembered.
        """
        own, other = named_values(self.student)[pair.student], named_values(self.teacher)[pair.teacher]
        if not same_width or (width(own) == width(other) and width(own) is not None):
            return Connection(pair.student, pair.teacher)
        wanted, have, axis = width(other), width(own), channel_axis(other)
        if wanted is None or have is None:
            raise ModelError(
                f"'{pair.student}' of the student and '{pair.teacher}' of the teacher have no known number of "
                f"channels: export the models with fixed sizes, or compare other values"
            )
        if self.mode != "learned":
            kept = self._kept(own, other, axis)
            if kept is not None and len(kept) == have:
                return Connection(pair.student, pair.teacher, axis, kept)
            if self.mode == "kept":
                raise ModelError(
                    f"the student does not remember which of the {wanted} channels of '{pair.teacher}' its {have} are: "
                    f"set connector to 'learned'"
                )
        key = (pair.student, wanted)
        if key not in self._learned:
            self._learned[key] = self._add(own, have, wanted)
        return Connection(self._learned[key], pair.teacher)

    def _add(self, value: ir.Value, have: int, wanted: int) -> str:
        axis, rank = channel_axis(value), len(value.shape or ())
        draws = np.random.default_rng([self.seed, len(self._learned)])
        projection = draws.standard_normal((have, wanted)) / np.sqrt(have)
        assert value.dtype is not None
        if axis == rank - 1:
            op, weights, attributes = "MatMul", projection, {}
        else:
            op, weights = "Conv", projection.T.reshape(wanted, have, *[1] * (rank - 2))
            attributes = {"kernel_shape": [1] * (rank - 2)}
        held = add_initializer(self.student, f"{value.name}/connector", weights.astype(value.dtype.numpy()))
        node = ir.node(op, [value, held], attributes=attributes)
        node.name = fresh_name(self.student, f"{value.name}/connect")
        node.outputs[0].name = fresh_name(self.student, f"{value.name}/connected")
        self.student.graph.append(node)
        return str(node.outputs[0].name)

    def _kept(self, own: ir.Value, other: ir.Value, axis: int) -> Array | None:
        """Which channels of the teacher's value are those of the student's, as far as its weights remember."""
        remembered = kept_indices(self.student)
        if not remembered:
            return None
        if self._groups is None:
            self._groups = find_groups(self.teacher)
        for group in (*self._groups.free, *self._groups.held):
            places = {(member.place.value, member.place.axis): member for member in group.members}
            member, same = places.get((str(other.name), axis)), places.get((str(own.name), axis))
            if member is not None and same is not None and np.array_equal(member.index, same.index):
                labels = _labels_kept(places, remembered, kept_indices(self.teacher))
                if labels is not None:
                    return np.flatnonzero((member.index == UNKNOWN) | np.isin(member.index, labels))
        return None


def _labels_kept(places: Mapping[Any, Any], student: Remembered, teacher: Remembered) -> Array | None:
    """The channels of a group that a pruned weight among its members still has.

    What is remembered are indices of the original, which the teacher may have lost some of itself.
    """
    for (name, axis), member in places.items():
        if axis in student.get(name, {}):
            original = np.arange(len(member.index)) if axis not in teacher.get(name, {}) else teacher[name][axis]
            labels = member.index[np.isin(original, student[name][axis])]
            return np.unique(labels[labels != UNKNOWN])
    return None
