"""Every technique on every model: what it costs and what it gains. Only `mixed` has a budget."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models import Case
from runs import Record, Run

from .attempts import Row, attempted, compressed, original, show, timing

PART = "techniques"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"name": "int8"},
    "int4 nearest": {"name": "int4", "block": 32, "scales": "minmax", "rounding": "nearest"},
    "int4": {"name": "int4"},
    "kmeans tensor": {"name": "kmeans", "codebook": "tensor"},
    "kmeans": {"name": "kmeans"},
    "kmeans channel": {"name": "kmeans", "codebook": "channel"},
    "mixed": {"name": "mixed"},
}
"""`kmeans` has tables, scales and wider codes as far as 6 % of the codes' bytes go; `kmeans channel`, a table an output
at any cost."""
OWN_BUDGET = frozenset({"mixed"})
QUICK = ("int8", "int4", "kmeans tensor", "kmeans")


def runs(cases: Sequence[str], variants: Sequence[str], limit: float, seconds: float) -> list[Run]:
    """Of all cases and variants; the most wanted first."""
    found = []
    for case_id in cases:
        first = original(case_id)
        attempts = [
            Run(
                name=f"{PART}/{case_id}/{variant}", function=technique, after=(first.name,),
                arguments=(case_id, variant, dict(VARIANTS[variant]), limit),
            )
            for variant in variants
        ]  # fmt: skip
        found += [first, *attempts, timing(PART, case_id, attempts, variants, seconds)]
    return found


def technique(case_id: str, variant: str, quantizer: Mapping[str, Any], limit: float, folder: Path) -> Row:
    """One attempt."""
    return attempted(case_id, variant, functools.partial(_make, quantizer), limit, folder)


def _make(quantizer: Mapping[str, Any], found: Case, target: Path) -> str:
    budget = {"max_drop": 0.01} if quantizer["name"] in OWN_BUDGET else {}
    return compressed(found, quantizer, target, **budget)


def shown(cases: Sequence[str], variants: Sequence[str], records: Mapping[str, Record]) -> list[Row]:
    """Print the table."""
    return show(PART, cases, variants, records)
