"""How every benchmark here prints and records: a Markdown table whose rows appear as they are measured, and JSON.

The JSON of a benchmark is `{"machine": {...}, "date", "cases": [{"case", "metric", "ours", "peers", "ratio",
"spread"}]}` and whatever else the script adds. `ratio` is ours over the best peer, turned so that above 1.0 is better;
`spread` is the relative half-width of what was measured (of a 95% interval, or half the distance of the quartiles).
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VERSIONS = ("pumice", "onnx", "onnxruntime", "numpy")


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: processor, cores, system and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: found for name in VERSIONS if (found := _version(name))},
    }


def now() -> str:
    """The date and time of a measurement."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


class Table:
    """A Markdown table on standard output; `widths` are the least widths of its columns, negative to align right."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        self._widths = tuple(columns.values())
        self.row(columns)
        self._print([("-" * (abs(width) - 1) + ":") if width < 0 else "-" * width for width in self._widths])

    def row(self, cells: Sequence[str] | Mapping[str, Any]) -> None:
        """Print one row at once, so that a run that is stopped has shown all it had."""
        self._print([cell.rjust(-w) if w < 0 else cell.ljust(w) for cell, w in zip(cells, self._widths, strict=True)])

    @staticmethod
    def _print(cells: Sequence[str]) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)


def measurement(
    case: str, metric: str, ours: float, peers: Mapping[str, float], *, spread: float, higher_is_better: bool
) -> dict[str, Any]:
    """One entry of `cases`; its ratio is None without a peer, or where a division by zero would be needed."""
    best = (max if higher_is_better else min)(peers.values(), default=None)
    above, below = (ours, best) if higher_is_better else (best, ours)
    return {
        "case": case,
        "metric": metric,
        "ours": ours,
        "peers": dict(peers),
        "ratio": above / below if above is not None and below else None,
        "spread": spread,
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a benchmark's record with the machine and the date named, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{os.getpid()}-{path.name}")
    work.write_text(json.dumps({"machine": machine(), "date": now(), **record}, indent=1) + "\n")
    work.replace(path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
