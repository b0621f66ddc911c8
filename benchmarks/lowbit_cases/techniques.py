"""Every technique on every model: what it costs and what it gains. Only `mixed` has a budget."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models import Case, reference
from tables import Table

from .attempts import COLUMNS, Row, attempt, cells, detail, floating, measurements, timed

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"name": "int8"},
    "int4 nearest": {"name": "int4", "block": 32, "scales": "minmax", "rounding": "nearest"},
    "int4": {"name": "int4"},
    "kmeans tensor": {"name": "kmeans", "codebook": "tensor", "table": "int8"},
    "kmeans scaled": {"name": "kmeans", "codebook": "scaled"},
    "kmeans channel": {"name": "kmeans", "codebook": "channel", "table": "int8"},
    "kmeans group": {"name": "kmeans", "codebook": "group", "table": "int8"},
    "mixed": {"name": "mixed"},
}
OWN_BUDGET = frozenset({"mixed"})
QUICK = ("int8", "int4", "kmeans tensor", "kmeans scaled")


def run(chosen: Sequence[Case], names: Sequence[str], limit: float, seconds: float, keep: Callable[..., None]) -> bool:
    """Measure; `keep` is told a case's entries and details. Whether something failed."""
    table, failed = Table(COLUMNS), False
    for found in chosen:
        with tempfile.TemporaryDirectory() as work:
            rows: list[Row] = []
            for row in _rows(found, names, limit, Path(work)):
                rows.append(row)
                keep([], [detail(found, row, rows[0])])  # a run that is stopped has what was judged
            rows = timed(rows, found.feed, seconds)
        for row in rows:
            table.row(cells(found, row, rows[0]))
        keep(measurements(found, rows), [detail(found, row, rows[0]) for row in rows])
        failed |= any(row.evaluation is None for row in rows)
    return failed


def _rows(found: Case, names: Sequence[str], limit: float, work: Path) -> Iterator[Row]:
    against = reference(found)
    feeds = [dict(feed) for feed in found.calibration()]
    yield floating(found, against)
    for name in names:
        make = compressor(found, VARIANTS[name], feeds, own=name in OWN_BUDGET)
        yield attempt(found, name, make, against, work / f"{name}.onnx", limit)


def compressor(
    found: Case, quantizer: Mapping[str, Any], feeds: list[dict[str, Any]], *, own: bool = False, **step: Any
) -> Callable[[Path], str]:
    """Writes the model as a quantizer makes it; `own`: the budget is that of the step, not off."""
    import pumice

    def make(target: Path) -> str:
        recipe = {
            "step": [{"use": "quantize", "quantizer": dict(quantizer), **({} if own else {"max_drop": 1.0}), **step}]
        }
        pumice.compress(found.path, data=feeds, recipe=recipe, measure=False).save(target)
        return ""

    return make
