"""Composites: operators that a graph spells out in several nodes, recognised so that one kernel can compute them.

    GELU                 x/2 (1 + erf(x / sqrt 2)), in any order of the factors
    SiLU                 x sigmoid(x)
    LayerNormalization   (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) [* scale [+ bias]], over the last axis

A pattern is an expression: a tuple of an operator and its operands, where a number stands for a constant close to it, a
string for anything (the same thing wherever it recurs). Addition and multiplication match either way round. A composite
is recognised only where nothing else reads the values inside and a kernel computes the operator it amounts to; its
result then differs in the last bits from that of the nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.dispatch import implementation
from pumice.ops import OpTable
from pumice.ops.record import Kernel, Node, Placement
from pumice.program import ABSENT, Step

Pattern = Any
"""(operator, *operands), a number, or the name of a variable."""
Found = Mapping[str, int]
"""Slot of every variable."""
CLOSE = 1e-4
"""Relative: constants were written down with six digits or more."""


@attrs.frozen
class Composite:
    """An operator and the ways to spell it."""

    patterns: Sequence[Pattern]
    operator: Callable[[Found, Sequence[Step], Graph], tuple[Node, tuple[int, ...]] | None]
    """From the variables and the steps inside, the node that it amounts to and the slots that it reads."""


class Graph:
    """Steps by what they compute, and constants."""

    def __init__(self, steps: Sequence[Step], template: Sequence[Any]) -> None:
        self.makers = {slot: i for i, step in enumerate(steps) for slot in step.outputs[:1] if slot != ABSENT}
        self.steps, self.template = steps, template

    def scalar(self, slot: int) -> float | None:
        """The constant's only value; None if it is no such constant."""
        value = self.template[slot]
        return float(value.reshape(())) if isinstance(value, np.ndarray | np.generic) and value.size == 1 else None


def recognised(
    steps: Sequence[Step],
    template: Sequence[Any],
    keep: set[int],
    kernels: Sequence[Kernel],
    table: OpTable,
    placement: Placement | None = None,
) -> list[Step]:
    """The steps, each composite that a kernel computes as one step; arguments as for `chains.fuse`."""
    if not kernels:
        return list(steps)
    graph, reads = Graph(steps, template), Counter(slot for step in steps for slot in (*step.inputs, *step.captures))
    reads.update(keep)
    gone: set[int] = set()
    found: dict[int, Step] = {}
    for index in reversed(range(len(steps))):  # the largest first: a composite ends where it is read
        if index in gone:
            continue
        for members, step in _candidates(index, graph, kernels, table, placement):
            inside = members - {index}
            if not gone & members and all(_vanishes(steps[i], members, steps, reads) for i in inside):
                found[index] = step
                gone |= inside
                break
    return [found.get(index, step) for index, step in enumerate(steps) if index not in gone]


def _vanishes(step: Step, members: set[int], steps: Sequence[Step], reads: Counter[int]) -> bool:
    """Whether only members read what the step computes."""
    own = Counter(slot for i in members for slot in steps[i].inputs)
    return all(own[slot] == reads[slot] for slot in step.outputs if slot != ABSENT)


def _candidates(
    index: int, graph: Graph, kernels: Sequence[Kernel], table: OpTable, placement: Placement | None
) -> Iterator[tuple[set[int], Step]]:
    """Composites that end at a step: their members, and the step that they amount to."""
    last = graph.steps[index]
    for composite in COMPOSITES:
        for pattern in composite.patterns:
            for slots, members in _matches(pattern, last.outputs[0], graph, {}, frozenset()):
                made = composite.operator(slots, [graph.steps[i] for i in members], graph)
                if made is None:
                    continue
                node = attrs.evolve(made[0], name=last.node.name, outputs=last.node.outputs)
                if any(k.part == "forward" and k.fits(node) for k in kernels):
                    op, call = implementation(node, [graph.template[s] for s in made[1]], table, kernels)
                    if placement is not None:
                        op, call, _ = placement.step(op, call, None)
                    yield set(members), attrs.evolve(last, node=node, op=op, call=call, inputs=made[1], vjp=None)


def _matches(
    pattern: Pattern, slot: int, graph: Graph, known: dict[str, int], members: frozenset[int]
) -> Iterator[tuple[dict[str, int], frozenset[int]]]:
    """Every way in which the value in a slot is the expression: variables, and the steps inside."""
    if isinstance(pattern, str):
        if known.get(pattern, slot) == slot:
            yield {**known, pattern: slot}, members
        return
    if isinstance(pattern, float):
        value = graph.scalar(slot)
        if value is not None and math.isclose(value, pattern, rel_tol=CLOSE):
            yield known, members
        return
    maker = graph.makers.get(slot)
    if maker is None:
        return
    step = graph.steps[maker]
    operator, *operands = pattern
    if step.node.op_type != operator or step.node.domain or len(step.inputs) < len(operands):
        return
    given = step.inputs[: len(operands)]
    orders = [given, given[::-1]] if operator in {"Add", "Mul"} else [given]
    for order in orders:
        yield from _all_match(operands, order, graph, known, members | {maker})


def _all_match(
    patterns: Sequence[Pattern], slots: Sequence[int], graph: Graph, known: dict[str, int], members: frozenset[int]
) -> Iterator[tuple[dict[str, int], frozenset[int]]]:
    if not patterns:
        yield known, members
        return
    for found, inside in _matches(patterns[0], slots[0], graph, known, members):
        yield from _all_match(patterns[1:], slots[1:], graph, found, inside)


# --- what is recognised -----------------------------------------------------------------------------------------------


def _gelu_patterns() -> Iterator[Pattern]:
    for scaled in (("Div", "x", math.sqrt(2)), ("Mul", "x", math.sqrt(0.5))):
        share = ("Add", ("Erf", scaled), 1.0)
        yield ("Mul", ("Mul", "x", share), 0.5)
        yield ("Mul", ("Mul", "x", 0.5), share)
        yield ("Mul", "x", ("Mul", share, 0.5))


def _layer_norm_patterns() -> Iterator[Pattern]:
    centred = ("Sub", "x", ("ReduceMean", "x"))
    for square in (("Pow", centred, 2.0), ("Mul", centred, centred)):
        y = ("Div", centred, ("Sqrt", ("Add", ("ReduceMean", square), "epsilon")))
        yield ("Add", ("Mul", y, "scale"), "bias")


def _gelu(slots: Found, inside: Sequence[Step], graph: Graph) -> tuple[Node, tuple[int, ...]]:
    return Node(op_type="Gelu", opset=20), (slots["x"],)


def _silu(slots: Found, inside: Sequence[Step], graph: Graph) -> tuple[Node, tuple[int, ...]]:
    return Node(op_type="Swish", opset=24), (slots["x"],)


def _layer_norm(slots: Found, inside: Sequence[Step], graph: Graph) -> tuple[Node, tuple[int, ...]] | None:
    epsilon, vectors = graph.scalar(slots["epsilon"]), [graph.template[slots[name]] for name in ("scale", "bias")]
    if epsilon is None or any(v is None or v.ndim != 1 for v in vectors):
        return None
    if not all(_over_last(step, graph) for step in inside if step.node.op_type == "ReduceMean"):
        return None
    node = Node(op_type="LayerNormalization", opset=17, attributes={"axis": -1, "epsilon": epsilon})
    return node, (slots["x"], slots["scale"], slots["bias"])


def _over_last(mean: Step, graph: Graph) -> bool:
    """Whether a ReduceMean is over the last axis, which it keeps."""
    axes = mean.node.get("axes")
    if axes is None and len(mean.inputs) > 1 and graph.template[mean.inputs[1]] is not None:
        axes = graph.template[mean.inputs[1]].tolist()
    return axes == [-1] and bool(mean.node.get("keepdims", 1))


COMPOSITES = (
    Composite(tuple(_gelu_patterns()), _gelu),
    Composite((("Mul", "x", ("Sigmoid", "x")),), _silu),
    Composite(tuple(_layer_norm_patterns()), _layer_norm),
)
