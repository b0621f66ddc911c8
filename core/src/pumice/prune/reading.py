"""What the values of a graph hold on calibration data, channel by channel, and which weights read them.

A value is read along an axis: (positions, size of the axis), at a regular selection of the positions of samples that
are spread over the data, so that memory does not grow with the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError
from pumice.model import clone
from pumice.ops.channels import Same, Summed
from pumice.prune.wiring import Place, Wired, Wiring

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.strategy import Runtime

Array = NDArray[Any]
Values = dict[Place, Array]
"""By place, (positions, size of the axis)."""
Reader = Callable[["ir.Model", Iterable[Place]], Values]
"""(model, places) -> what they hold on calibration data, the same positions of every model."""

SAMPLES = 256
"""Samples that values are read on at most."""

ROWS = 4096
"""Positions that are kept of a value, about, where many values are kept."""


def reader_of(data: Dataset | None, runtime: Runtime, rows: int = ROWS) -> Reader:
    """Reads values of any model on the same samples, at a regular selection of positions.

    Args:
        data: samples.
        runtime: runs the models.
        rows: positions that are kept of a value, about.

    Raises:
        DataError: there are no data.
    """
    if data is None:
        raise DataError("activations need calibration data: give them with --data (data=)")
    batches = list(spread(data, SAMPLES).batches(8))

    def read(model: ir.Model, places: Iterable[Place]) -> Values:
        found: dict[Place, list[Array]] = {place: [] for place in places}
        session = runtime.open(clone(model), outputs=list(dict.fromkeys(place.value for place in found)))
        for batch in batches:
            values = session.run(batch.feeds)
            for place, kept in found.items():
                assert isinstance(place.axis, int)
                held = values[place.value]
                flat = np.moveaxis(held, place.axis, -1).reshape(-1, held.shape[place.axis])
                kept.append(flat[:: _stride(len(flat), rows / len(batches))].copy())  # a view would hold the whole
        return {place: np.concatenate(kept) for place, kept in found.items()}

    return read


def _stride(positions: int, rows: float) -> int:
    """Leaves about `rows` of the positions; one that divides the width of a picture would meet few of its columns."""
    return next(s for s in itertools.count(max(1, math.ceil(positions / rows))) if math.gcd(s, positions) == 1)


def spread(data: Dataset, count: int) -> Dataset:
    """At most `count` samples, spread over the data: neighbours are often alike."""
    return data if data.count() <= count else data.split(count)[0]


def summed(wiring: Wiring) -> list[Place]:
    """Places of computed values that a node sums over, in the order of the graph."""
    found: dict[Place, None] = {}
    for wired in wiring.nodes:
        for tie in wired.ties:
            place = wired.place(tie.port) if isinstance(tie, Summed) else None
            if place is not None and place.value not in wiring.constants and isinstance(place.axis, int):
                found[place] = None
    return list(found)


def readers(wiring: Wiring, places: Container[Place]) -> Iterator[tuple[Place, Place]]:
    """Every place among these that a node sums over, with the node's own weight for that sum."""
    for wired in wiring.nodes:
        for tie in wired.ties:
            source = wired.place(tie.port) if isinstance(tie, Summed) else None
            weight = _weight(wired, source) if source is not None and source in places else None
            if (
                source is not None
                and weight is not None
                and len(wiring.touching[weight.value]) == 1
                and source.value not in wiring.constants
            ):
                yield source, weight


def _weight(wired: Wired, source: Place) -> Place | None:
    for tie in wired.ties:
        if isinstance(tie, Same) and tie.a_index is None and tie.b_index is None:
            a, b = wired.place(tie.a), wired.place(tie.b)
            if a == source and tie.b.slot >= 0 and b is not None and b != source:
                return b
    return None
