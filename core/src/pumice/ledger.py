"""The ledger: what was done to every node that a step looked at, and why.

Verdicts: `applied` (the node was changed), `skipped` (nothing to do there: not this step's business),
`declined` (it could have been changed and was deliberately left: rules, accuracy, an unknown neighbour).
A step whose ledger holds no `applied` line has failed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

Verdict = Literal["applied", "skipped", "declined"]


@attrs.frozen(kw_only=True)
class Entry:
    """One line of the ledger."""

    step: str
    """The step that looked, e.g. `quantize` or `load`."""
    node: str
    """Name of the node (or `model` for a line about the whole graph)."""
    op: str
    """Operator type of the node, e.g. `Conv`; empty for a line about the whole graph."""
    verdict: Verdict
    reason: str
    """One sentence, written for the user."""
    details: Mapping[str, Any] = attrs.field(factory=dict)
    """JSON-able figures, e.g. `{"sqnr_db": 31.2}`."""


@attrs.define
class Ledger:
    """An append-only list of entries, in the order the steps made them."""

    entries: list[Entry] = attrs.field(factory=list)

    def add(self, step: str, verdict: Verdict, node: str, op: str, reason: str, **details: Any) -> None:
        self.entries.append(Entry(step=step, node=node, op=op, verdict=verdict, reason=reason, details=details))

    def applied(self, step: str, node: str, op: str, reason: str, **details: Any) -> None:
        self.add(step, "applied", node, op, reason, **details)

    def skipped(self, step: str, node: str, op: str, reason: str, **details: Any) -> None:
        self.add(step, "skipped", node, op, reason, **details)

    def declined(self, step: str, node: str, op: str, reason: str, **details: Any) -> None:
        self.add(step, "declined", node, op, reason, **details)

    def note(self, step: str, reason: str, **details: Any) -> None:
        """A line about the whole model, e.g. an opset conversion at load."""
        self.add(step, "applied", "model", "", reason, **details)

    def extend(self, other: "Ledger") -> None:
        self.entries.extend(other.entries)

    def of(self, step: str, verdict: Verdict | None = None) -> list[Entry]:
        return [e for e in self.entries if e.step == step and (verdict is None or e.verdict == verdict)]

    def counts(self, step: str | None = None) -> dict[str, int]:
        """`{"applied": n, "skipped": n, "declined": n}` for one step or for all."""
        found = Counter(e.verdict for e in self.entries if step is None or e.step == step)
        return {verdict: found.get(verdict, 0) for verdict in ("applied", "skipped", "declined")}

    def to_json(self) -> list[dict[str, Any]]:
        return [attrs.asdict(e) for e in self.entries]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
