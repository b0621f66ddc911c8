"""`python -m pumice.ops docs` prints docs/ops.md; `python -m pumice.ops cases` reruns ONNX's node cases first."""

import sys
from collections.abc import Iterator, Sequence

from pumice.ops import Op, core_table
from pumice.ops.node_cases import Counts, Record
from pumice.ops.record import FIELDS

_HEAD = """# Operators

Every operator that core implements, and ONNX's own node cases in which it occurs. Written by
`python -m pumice.ops docs`; do not edit. A plugin adds operators, or parts of one, through the hook `pumice_ops`.

| | |
|---|---|
| operators implemented | {operators} |
| node cases of onnx {onnx} passed | {passed} of {total} |
| node cases refused by name | {refused} |
| node cases with a wrong answer | 0 |

`forward` computes, `vjp` differentiates, `cost` counts multiply-accumulates and bytes, `channels` lets pruning through,
`infer` gives shapes. Opsets are those whose meaning a record covers.

| operator | opsets | forward | vjp | cost | channels | infer | cases passed |
|---|---|---|---|---|---|---|---|
"""

_REFUSED = """
## Refused by name

A model with one of these stops with a sentence that names the operator, its domain, its opset and the node.

| operator | cases refused |
|---|---|
"""


def opsets(records: Sequence[Op]) -> str:
    """Ranges of the records that have a forward, oldest first."""
    ranges = sorted({(op.since, op.until) for op in records if op.forward is not None})
    return ", ".join(f"{since}+" if until is None else f"{since}-{until}" for since, until in ranges)


def _rows(cases: Record) -> Iterator[str]:
    for (domain, op_type), records in core_table().records.items():
        name = f"{domain}.{op_type}".lstrip(".")
        marks = {field: "yes" if any(getattr(op, field) is not None for op in records) else "" for field in FIELDS}
        count = cases.operators.get(name, Counts(0, 0))
        columns = [name, opsets(records), *(marks[f] for f in ("forward", "vjp", "cost", "channels", "infer"))]
        yield f"| {' | '.join([*columns, f'{count.passed} of {count.total}' if count.total else 'none'])} |\n"


def _refused(cases: Record) -> Iterator[str]:
    known = {f"{domain}.{op_type}".lstrip(".") for domain, op_type in core_table().records}
    for name, count in cases.operators.items():
        if count.refused and (name not in known or not count.passed):
            yield f"| {name} | {count.refused} |\n"


def docs() -> str:
    """The text of docs/ops.md."""
    cases = Record.load()
    head = _HEAD.format(
        operators=len(core_table().records),
        onnx=cases.onnx, passed=cases.passed, total=cases.total, refused=len(cases.refused),
    )  # fmt: skip
    return head + "".join(_rows(cases)) + _REFUSED + "".join(_refused(cases))


def main(arguments: Sequence[str]) -> int:
    from pumice.ops.node_cases import run_all

    if list(arguments) == ["cases"]:
        run_all().save()
    elif list(arguments) != ["docs"]:
        sys.stderr.write("usage: python -m pumice.ops docs|cases\n")
        return 2
    sys.stdout.write(docs())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
