"""Figures of peers that are too heavy to run with every table, from `recorded.toml`, which says how they came about."""

import tomllib
from pathlib import Path

import attrs

_FILE = tomllib.loads((Path(__file__).parent / "recorded.toml").read_text())

TOOLS: dict[str, str] = _FILE["tools"]
"""Tool name to the version that was measured."""


@attrs.frozen(kw_only=True)
class Recorded:
    """What one tool once made of one case."""

    case: str
    tool: str
    variant: str
    value: float
    """The case's metric."""
    agreement: float | None = None
    """With the float model, as the case defines it; None where it was not measured."""
    kilobytes: float

    @property
    def id(self) -> str:
        return f"{self.tool} {TOOLS[self.tool]}, {self.variant}"


_RESULTS = tuple(Recorded(**result) for result in _FILE["result"])


def recorded(case: str) -> list[Recorded]:
    """Every recorded figure of a case."""
    return [result for result in _RESULTS if result.case == case]
