"""The trunk of a network: the values that everything passes through, and the layers between them.

Call a value *active* if it is floating point and depends on a weight or on a floating-point input; sizes and masks are
not. A value is a *waist* if every active path to the outputs passes through it. Then all that comes before it is done
when it is computed and nothing else is alive: in whatever order the nodes stand, the waists are the values that are
alone at some moment. A *stretch* lies between two neighbouring waists. Stretches that repeat, each with weights of the
same shapes, are the layers of the network, several of them together where a layer has several (attention, then feed-
forward); a stretch that adds its own beginning back is a residual block and, with the activation behind it, a layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import onnx_ir as ir

from pumice.model import is_constant, weight_of


@attrs.frozen(eq=False)
class Stretch:
    """The active nodes between two waists."""

    start: ir.Value
    end: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for stretches that compute the same function of their start and of weights of the same shapes."""
        return tuple((node.domain, node.op_type, _sizes(node)) for node in self.nodes)

    @property
    def weights(self) -> frozenset[ir.Value]:
        return frozenset(weight for node in self.nodes if (weight := weight_of(node)) is not None)

    @property
    def residual(self) -> bool:
        """Whether its beginning is added to what it computes."""
        made = {value for node in self.nodes for value in node.outputs}
        sums = [set(node.inputs) for node in self.nodes if node.op_type == "Add"]
        return bool(self.weights) and any(self.start in terms and terms & made for terms in sums)


@attrs.frozen(eq=False)
class Layer:
    """One of several stretches, or runs of stretches, that could each be left out."""

    start: ir.Value
    end: ir.Value
    kind: int
    """Layers of one kind repeat each other; 0: residual blocks that repeat nothing."""
    weights: int = 0
    """Numbers in them."""


def waists(model: ir.Model) -> list[ir.Value]:
    """Values of the main graph that every active path passes through, in order."""
    return [value for value, _ in _alone(model)]


def stretches(model: ir.Model) -> list[Stretch]:
    """The parts between neighbouring waists, in order."""
    found, start = [], None
    for value, nodes in _alone(model):
        if start is not None:
            found.append(Stretch(start, value, tuple(nodes)))
        start = value
    return found


def layers(model: ir.Model) -> list[Layer]:
    """The layers, in order; none where nothing repeats and no block is residual."""
    parts = stretches(model)
    found: list[tuple[int, Layer]] = []
    runs = _repeats(parts)
    for kind, (first, period, count) in enumerate(runs, 1):
        found += [
            (at, Layer(parts[at].start, parts[at + period - 1].end, kind))
            for at in range(first, first + period * count, period)
        ]
    taken = {i for first, period, count in runs for i in range(first, first + period * count)}
    for at, part in enumerate(parts):
        if at not in taken and part.residual and same_sizes(part.start, part.end):
            last = next((p for p in parts[at + 1 : at + 2] if not p.weights and same_sizes(p.start, p.end)), part)
            held = sum(math.prod(d for d in weight.shape or () if isinstance(d, int)) for weight in part.weights)
            found.append((at, Layer(part.start, last.end, 0, held)))
    return [layer for _, layer in sorted(found, key=lambda item: item[0])]


def same_sizes(a: ir.Value, b: ir.Value) -> bool:
    """Whether two shapes agree in rank and wherever both have numbers."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a.shape, b.shape, strict=True))


def _alone(model: ir.Model) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Every waist with the active nodes since the one before."""
    active = {value for value in model.graph.inputs if _is_float(value)}
    nodes = []
    for node in model.graph:
        if weight_of(node) is not None or any(value in active for value in node.inputs):
            results = [value for value in node.outputs if _is_float(value)]
            active.update(results)
            nodes += [node] if results else []
    readers = Counter(value for node in nodes for value in set(node.inputs) if value in active)
    readers.update(model.graph.outputs)
    alive = {value for value in model.graph.inputs if readers[value]} & active
    since: list[ir.Node] = []
    if len(alive) == 1:
        yield next(iter(alive)), []
    for node in nodes:
        since.append(node)
        for value in active.intersection(node.inputs):
            readers[value] -= 1
            if value in alive and readers[value] <= 0:
                alive.discard(value)
        alive.update(value for value in node.outputs if value in active and readers[value] > 0)
        if len(alive) == 1 and any(readers[value] > value.is_graph_output() for value in alive):
            yield next(iter(alive)), since
            since = []


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _sizes(node: ir.Node) -> tuple[object, ...]:
    """Shapes of its constants."""
    return tuple(
        tuple(d for d in value.shape)
        for value in node.inputs
        if value is not None and is_constant(value) and value.shape
    )


Run = tuple[int, int, int]
"""The first stretch, how many make a layer, and how many layers follow each other."""


def _repeats(parts: Sequence[Stretch]) -> list[Run]:
    """The longest runs of layers, none overlapping another, in order; a layer begins with a residual block if any."""
    keys = [(part.signature, [d if isinstance(d, int) else None for d in part.start.shape or ()]) for part in parts]
    free = np.ones(len(parts), bool)
    runs = sorted(_runs(keys), key=lambda run: (-run[1] * run[2], run[1], not parts[run[0]].residual, run[0]))
    found = []
    for first, period, count in runs:
        members = slice(first, first + period * count)
        if free[members].all() and _own_weights(parts[members], period):
            free[members] = False
            found.append((first, period, count))
    return sorted(found)


def _runs(keys: Sequence[object]) -> Iterator[Run]:
    for period in range(1, len(keys) // 2 + 1):
        first = 0
        while first + 2 * period <= len(keys):
            length = 0
            while first + length + period < len(keys) and keys[first + length] == keys[first + length + period]:
                length += 1
            if length >= period:
                yield from (
                    (start, period, length // period + 1) for start in range(first, first + length % period + 1)
                )
            first += length + 1


def _own_weights(parts: Sequence[Stretch], period: int) -> bool:
    """Whether every layer of a run has weights, and none that another has: steps of an unrolled loop share theirs."""
    held = [frozenset().union(*(p.weights for p in parts[at : at + period])) for at in range(0, len(parts), period)]
    return all(held) and sum(map(len, held)) == len(frozenset().union(*held))
