"""Segments: a model run piece by piece, so that what one layer writes can be mended before the next one reads it.

The graph is cut behind chosen values. A segment computes one of them from what earlier segments left, and leaves what
later ones will read; a value is dropped with its last reader. All samples pass through one segment before the next one
starts, so one run of the whole model is paid for, whatever the number of cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import extract

from pumice.strategy import Runtime, Session

Held = dict[str, NDArray[Any]]
"""What is alive of one sample, by name."""


@attrs.frozen(eq=False)
class Segment:
    """The nodes between earlier values and the next cut."""

    cut: ir.Value
    reads: tuple[ir.Value, ...]
    """Graph inputs and values of earlier segments."""
    writes: tuple[ir.Value, ...]
    """The cut, and whatever else later segments read."""
    drops: tuple[ir.Value, ...]
    """Values that no later segment reads."""

    def model(self, whole: ir.Model, held: Mapping[str, NDArray[Any]]) -> ir.Model:
        """A model of its own; `held` says the types of what it reads."""
        graph = extract(whole.graph, list(self.reads), list(self.writes))
        for value in graph.inputs:
            array = held[value.name or ""]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * array.ndim)
        return ir.Model(graph, ir_version=whole.ir_version)


def segments(model: ir.Model, cuts: Sequence[ir.Value]) -> list[Segment]:
    """The segments that end in each of `cuts` (outputs of nodes of the main graph, all different), in graph order."""
    order = {node: number for number, node in enumerate(model.graph)}
    cuts = sorted(cuts, key=lambda value: order[_producer(value)])
    number_of: dict[ir.Node, int] = {}
    for number, cut in enumerate(cuts):
        _assign(_producer(cut), number, number_of)
    last_reader: dict[ir.Value, int] = {}
    reads: list[dict[ir.Value, None]] = [{} for _ in cuts]
    for node in (n for n in model.graph if n in number_of):
        number = number_of[node]
        for value in _read(node):
            last_reader[value] = max(last_reader.get(value, 0), number)
            producer = value.producer()
            if (producer is None and not value.is_initializer()) or number_of.get(producer, number) != number:  # type: ignore[arg-type]
                reads[number][value] = None
    found = []
    for number, cut in enumerate(cuts):
        made = [v for n in model.graph if number_of.get(n) == number for v in n.outputs]
        writes = [v for v in made if v is cut or last_reader.get(v, 0) > number]
        drops = [v for v in (*reads[number], cut) if last_reader.get(v, 0) <= number]
        found.append(Segment(cut, tuple(reads[number]), tuple(writes), tuple(drops)))
    return found


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _assign(last: ir.Node, number: int, number_of: dict[ir.Node, int]) -> None:
    """Give `number` to `last` and to everything that it needs and that has none yet."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node not in number_of:
            number_of[node] = number
            waiting.extend(p for value in _read(node) if (p := value.producer()) is not None)


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node reads of the main graph, itself or in its bodies."""
    inside = {
        value
        for attribute in node.attributes.values()
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for body in ([attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs())
        for inner in ir.traversal.RecursiveGraphIterator(body)
        for value in inner.inputs
        if value is not None and value.graph is node.graph
    }
    own = [value for value in node.inputs if value is not None]
    return [*own, *sorted(inside - set(own), key=lambda v: v.name or "")]


def run_in_segments(
    model: ir.Model,
    cuts: Sequence[ir.Value],
    runtime: Runtime,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    budget: int,
    mend: Callable[[ir.Value, list[NDArray[Any]]], None],
) -> None:
    """Run all samples through `model`, cut by cut; `mend` may change what each of them holds of a cut, in place.

    Args:
        model: the model; its main graph is sorted.
        cuts: values at which to stop.
        runtime: runs the segments.
        feeds: the samples. As many as fit are used, the first at least.
        budget: bytes to hold.
        mend: gets the cut and its arrays, one a sample.
    """
    parts = segments(model, cuts)
    waiting = iter(feeds)
    first = next(waiting, None)
    if first is None:
        return
    sessions, peak = _opened(model, parts, runtime, first)
    samples: list[Held] = [dict(first), *map(dict, itertools.islice(waiting, max(0, budget // max(peak, 1) - 1)))]
    for part, session in zip(parts, sessions, strict=True):
        for held in samples:
            held.update({n: np.array(a) for n, a in session.run(_inputs(part, held)).items()})
        mend(part.cut, [held[part.cut.name or ""] for held in samples])
        for held in samples:
            for value in part.drops:
                del held[value.name or ""]


def _opened(
    model: ir.Model, parts: Sequence[Segment], runtime: Runtime, feed: Mapping[str, NDArray[Any]]
) -> tuple[list[Session], int]:
    """A session for each segment, and the most bytes that one sample holds."""
    held, sessions, peak = dict(feed), [], 0
    for part in parts:
        session = runtime.open(part.model(model, held), outputs=[v.name or "" for v in part.writes])
        held.update(session.run(_inputs(part, held)))
        peak = max(peak, sum(array.nbytes for array in held.values()))
        for value in part.drops:
            del held[value.name or ""]
        sessions.append(session)
    return sessions, peak


def _inputs(part: Segment, held: Held) -> Held:
    return {value.name or "": held[value.name or ""] for value in part.reads}
