"""Whether a student can learn from a teacher, said before anything runs.

Inputs and outputs are paired by name where the names agree and by position otherwise; then types, ranks and all sizes
that both have as numbers must be equal (an output may have wider numbers). The tables that token numbers are looked up
in must have as many rows: else a number means one word to the teacher and another, or none, to the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from pumice.distil.trunk import same_sizes
from pumice.errors import ModelError
from pumice.model import clone, consumers, forget_names, is_constant


def require_compatible(student: ir.Model, teacher: ir.Model) -> None:
    """
    Raises:
        ModelError: every mismatch, a sentence each.
    """
    found = list(mismatches(student, teacher))
    if found:
        raise ModelError("the student cannot learn from this teacher: " + "; also, ".join(found))


def mismatches(student: ir.Model, teacher: ir.Model) -> Iterator[str]:
    """What stands between a student and its teacher, each as a sentence with the remedy."""
    for what, own, other in (
        ("input", _fed(student), _fed(teacher)),
        ("output", student.graph.outputs, teacher.graph.outputs),
    ):
        if len(own) != len(other):
            yield (
                f"the student has {len(own)} {what}s ({_names(own)}), the teacher {len(other)} ({_names(other)}): "
                f"give models with the same {what}s"
            )
            continue
        for a, b in zip(own, _paired(own, other), strict=True):
            if _types_differ(a, b, exact=what == "input"):
                yield f"{what} '{a.name}' is {_type(a)} in the student, {_type(b)} in the teacher: convert one"
            elif a.shape is not None and b.shape is not None and not same_sizes(a, b):
                yield _sizes_differ(what, a, b)
    yield from _vocabularies(student, teacher)


def size_of(constant: ir.Value) -> tuple[int, ...]:
    """The shape of a constant, all numbers."""
    assert constant.shape is not None
    return tuple(d for d in constant.shape if isinstance(d, int))


def aligned(model: ir.Model, like: ir.Model) -> ir.Model:
    """The model with its inputs and outputs called as those of another, where they can be paired."""
    renamed = clone(model)
    for own, other in ((_fed(renamed), _fed(like)), (renamed.graph.outputs, like.graph.outputs)):
        if len(own) == len(other):
            names = [str(value.name) for value in _paired(own, other)]
            taken = {str(value.name): value for node in renamed.graph for value in node.outputs}
            for value, name in zip(own, names, strict=True):
                if name in taken and taken[name] is not value:
                    taken[name].name = f"{name}/inner"
                value.name = name
    forget_names(renamed)
    return renamed


def _fed(model: ir.Model) -> list[ir.Value]:
    """Inputs that are no defaults of initializers."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _paired(own: Sequence[ir.Value], other: Sequence[ir.Value]) -> list[ir.Value]:
    by_name = {value.name: value for value in other}
    return [by_name[value.name] for value in own] if {v.name for v in own} == set(by_name) else list(other)


def _types_differ(own: ir.Value, other: ir.Value, *, exact: bool) -> bool:
    """Outputs may have floating-point numbers of different widths."""
    if own.dtype is None or other.dtype is None or own.dtype == other.dtype:
        return False
    return exact or not (own.dtype.is_floating_point() and other.dtype.is_floating_point())


def _type(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else value.dtype.name


def _sizes_differ(what: str, own: ir.Value, other: ir.Value) -> str:
    sentence = f"{what} '{own.name}' is {own.shape} in the student and {other.shape} in the teacher: "
    if what == "output":
        return sentence + "give a student that answers the same classes, or widths, as its teacher"
    return sentence + "export both for the same sizes"


def _vocabularies(student: ir.Model, teacher: ir.Model) -> Iterator[str]:
    own, other = vocabularies(student), vocabularies(aligned(teacher, student))
    for name in own.keys() & other.keys():
        if own[name] != other[name]:
            yield (
                f"the vocabularies of input '{name}' differ, {own[name]} words in the student and {other[name]} in the "
                f"teacher: use the same tokenizer for both"
            )


def vocabularies(model: ir.Model) -> dict[str, int]:
    """How many words there are, by the input that numbers them."""
    return {name: rows for value in _fed(model) for name, rows in _tables(value)}


def _tables(value: ir.Value) -> Iterator[tuple[str, int]]:
    """The input with the rows of every table that it looks up."""
    for node in consumers(value):
        table = node.inputs[0]
        if node.op_type == "Gather" and table is not value and is_constant(table) and table is not None:
            yield str(value.name), size_of(table)[0]


def _names(values: Sequence[ir.Value]) -> str:
    return ", ".join(f"'{value.name}'" for value in values)
