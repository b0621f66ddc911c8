"""Taps: which values of the student are compared with which of the teacher.

A tap is any value of a main graph, found by its name, by the name of its node, or by a pattern of either; `a=b` pairs
the student's `a` with the teacher's `b`. Where nobody names taps they are found:

    features     the ends of the layers (of every resolution the last waist, where a network has no layers)
    attention    the softmax whose result is multiplied with values: (..., queries, keys)
    values       what it is multiplied with: (..., keys, width of a head)

and paired layer for layer. Where depths differ, layer i of m is paired with layer round(i n / m) of n, among those of
the same resolution: the last with the last.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import attrs
import onnx_ir as ir

from pumice.distil.loss import DistillationLoss
from pumice.distil.trunk import layers, waists
from pumice.errors import ModelError, nearest
from pumice.model import consumers

CONVOLUTIONAL = frozenset(
    {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}
)
"""Operators whose channels are on axis 1."""
LAST = frozenset({"MatMul", "Gemm", "LayerNormalization", "Gather", "LSTM", "GRU", "RNN", "Attention"})
"""Operators whose channels are on the last axis."""


@attrs.frozen
class Pair:
    """A value of the student and the one of the teacher that it is compared with, by name."""

    student: str
    teacher: str


def pairs(loss: DistillationLoss, student: ir.Model, teacher: ir.Model) -> list[Pair]:
    """What a loss compares; shapes must have been inferred.

    Raises:
        ModelError: a pattern that names nothing, or nothing to compare.
    """
    if loss.at:
        return [pair for entry in loss.at for pair in _named(entry, loss, student, teacher)]
    if loss.compares == "outputs":
        return [_first_outputs(student, teacher)]
    find = FINDERS[loss.compares]
    found = correspond(find(student), find(teacher))
    if not found:
        raise ModelError(
            f"the loss '{loss.name}' finds no {loss.compares} that student and teacher have in common: name them with "
            f"its knob 'at', as student=teacher"
        )
    return found


def correspond(students: Sequence[ir.Value], teachers: Sequence[ir.Value]) -> list[Pair]:
    """Layer for layer, among values of the same resolution."""
    groups: dict[object, list[ir.Value]] = {}
    for value in students:
        groups.setdefault(_resolution(value), []).append(value)
    found = []
    for resolution, own in groups.items():
        others = [value for value in teachers if _resolution(value) == resolution]
        for number, value in enumerate(own, 1):
            if others:
                other = others[max(1, round(number * len(others) / len(own))) - 1]
                found.append(Pair(str(value.name), str(other.name)))
    return found


# --- where taps are ---------------------------------------------------------------------------------------------------


def features(model: ir.Model) -> list[ir.Value]:
    """The ends of the layers, in order; else of every resolution the last waist that is no output."""
    found = [layer.end for layer in layers(model)]
    if not found:
        last = {_resolution(value): value for value in waists(model)[1:] if not value.is_graph_output()}
        found = list(last.values())
    return found


def attention_maps(model: ir.Model) -> list[ir.Value]:
    return [weights for weights, _ in _attended(model)]


def attended_values(model: ir.Model) -> list[ir.Value]:
    return [values for _, values in _attended(model)]


FINDERS: Mapping[str, Callable[[ir.Model], list[ir.Value]]] = MappingProxyType(
    {"features": features, "attention": attention_maps, "values": attended_values}
)


def channel_axis(value: ir.Value) -> int:
    """The axis along which a value's channels lie: 1 behind convolutions, else the last."""
    rank, pending, seen = len(value.shape or ()), [value], {value}
    while pending and rank > 2:
        node = pending.pop(0).producer()
        if node is None or node.op_type in CONVOLUTIONAL:
            return 1
        if node.op_type in LAST:
            break
        fresh = [v for v in node.inputs if v is not None and v not in seen and len(v.shape or ()) == rank]
        pending += fresh
        seen.update(fresh)
    return rank - 1


def width(value: ir.Value) -> int | None:
    """Channels of a value, None where they are not known."""
    size = value.shape[channel_axis(value)] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def named_values(model: ir.Model) -> dict[str, ir.Value]:
    """Computed values by their names, and first results by the names of their nodes."""
    found = {str(node.name): node.outputs[0] for node in model.graph if node.name}
    return found | {str(value.name): value for node in model.graph for value in node.outputs}


def _attended(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Every softmax over keys with the values that it weighs."""
    shares = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    readers = [(value, reader) for value in shares for reader in consumers(value) if reader.op_type == "MatMul"]
    return [(value, r.inputs[1]) for value, r in readers if r.inputs[0] is value and r.inputs[1] is not None]


def _resolution(value: ir.Value) -> tuple[object, ...]:
    """Rank and, of pictures, height and width."""
    shape = value.shape or ()
    return (len(shape), *(d if isinstance(d, int) else None for d in (shape[2:] if channel_axis(value) == 1 else ())))


def _first_outputs(student: ir.Model, teacher: ir.Model) -> Pair:
    own, other = student.graph.outputs[0], teacher.graph.outputs[0]
    return Pair(str(own.name), str(other.name))


def _named(entry: str, loss: DistillationLoss, student: ir.Model, teacher: ir.Model) -> list[Pair]:
    left, _, right = entry.partition("=")
    own = _matching(left, student, loss, "student")
    other = _matching(right or left, teacher, loss, "teacher")
    if len(own) == len(other):
        return [Pair(str(a.name), str(b.name)) for a, b in zip(own, other, strict=True)]
    found = correspond(own, other)
    if not found:
        raise ModelError(
            f"'{entry}' of the loss '{loss.name}' pairs values of different resolutions: name values of one height and "
            f"width"
        )
    return found


def _matching(pattern: str, model: ir.Model, loss: DistillationLoss, whose: str) -> list[ir.Value]:
    known = named_values(model)
    found = list(dict.fromkeys(known[name] for name in known if fnmatch.fnmatchcase(name, pattern)))
    if not found:
        raise ModelError(
            f"the loss '{loss.name}' is to compare '{pattern}', but the {whose} has no such value or node"
            f"{nearest(pattern, known)}"
        )
    return found
