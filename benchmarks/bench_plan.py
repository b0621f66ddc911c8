"""The plan with the installed kernels against the plan in NumPy alone, on real float models, end to end.

    python benchmarks/bench_plan.py [--quick] [--json FILE] [--only ID,ID]

One row a model, on its own timing feed and all cores. Both plans take turns of a few runs; times are medians, the
spread is half the distance of the quartiles, relative. `error` is the largest difference of an output, relative to the
largest value of that output; `NumPy still` names the operators that took most of the time among those that no kernel
computes.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import CASES, case
from tables import Table, measurement, write_json

from pumice.model import load
from pumice.plan import Plan, compile_plan
from pumice.registry import registry

DEFAULT = ("effnet_lite0", "minilm", "fashion_resnet", "fashion_mobile", "fashion_vit", "fashion_lstm", "crepe_tiny",
           "silero_vad", "ocr_rec_v4", "char_lstm")  # fmt: skip
QUICK = ("fashion_resnet", "fashion_mobile", "fashion_vit", "fashion_lstm")
TARGET = 5.0
SECONDS, QUICK_SECONDS, FEWEST, MOST = 6.0, 1.0, 3, 100
TURN, REST = 5, 0.15
"""Runs in a row, and seconds between two turns, in which threads that wait by spinning fall asleep."""
COLUMNS = {"case": 16, "NumPy ms": -9, "kernels ms": -10, "ratio": -6, "spread": -6, "error": -8, "NumPy still": 30}


@attrs.frozen(kw_only=True)
class Compared:
    """One model's two plans."""

    numpy: float
    kernels: float
    """Medians, in seconds."""
    spread: float
    error: float
    left: str


def compared(path: Path, feed: Mapping[str, np.ndarray], seconds: float) -> Compared:
    """Both plans of a model on one feed."""
    model, known = load(path), registry()
    plans = [compile_plan(model, ops=known.ops), compile_plan(model, ops=known.ops, kernels=known.kernels)]
    truth, ours = (plan.run(feed) for plan in plans)
    once = sum(_timed(plan, feed) for plan in plans)
    times: list[list[float]] = [[], []]
    for _ in range(int(np.clip(seconds / (TURN + 1) / once, FEWEST, MOST))):
        for plan, found in zip(plans, times, strict=True):
            time.sleep(REST)
            plan.run(feed)
            found += [_timed(plan, feed) for _ in range(TURN)]
    low, middle, high = np.percentile(times[1], [25, 50, 75])
    return Compared(
        numpy=float(np.median(times[0])), kernels=float(middle), spread=float((high - low) / 2 / middle),
        error=max(_difference(ours[name], truth[name]) for name in truth), left=_left(plans, feed),
    )  # fmt: skip


def _timed(plan: Plan, feed: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    plan.run(feed)
    return time.perf_counter() - start


def _difference(have: np.ndarray, want: np.ndarray) -> float:
    if have.dtype.kind != "f" or not have.size:
        return float((have != want).any())
    return float(np.abs(have - want).max() / max(float(np.abs(want).max()), 1e-30))


def _left(plans: list[Plan], feed: Mapping[str, np.ndarray]) -> str:
    """The operators without a kernel that take most of the second plan's time, with their share."""
    spent: dict[str, float] = {}
    plan, started = plans[1], [0.0]
    calls = {step.node.name or step.node.outputs[0]: step for step in plan.steps}
    by_output = {name: step for step in calls.values() for name in step.node.outputs}

    def tap(name: str, value: Any) -> None:
        now = time.perf_counter()
        step = by_output.get(name)
        if step is not None:
            kind = step.node.op_type
            spent[kind] = spent.get(kind, 0.0) + now - started[0]
        started[0] = time.perf_counter()

    started[0] = time.perf_counter()
    plan.run(feed, tap=tap)
    done = {kernel.op_type for kernel in registry().kernels}
    slow = sorted(((t, kind) for kind, t in spent.items() if kind not in done), reverse=True)[:3]
    whole = sum(spent.values())
    return ", ".join(f"{kind} {t / whole:.0%}" for t, kind in slow)


def main() -> int:
    """Print the table; 1 if a model failed."""
    arguments = _parser().parse_args()
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    table, record, failures = Table(COLUMNS), [], []
    for name in arguments.only or (QUICK if arguments.quick else DEFAULT):
        try:
            row = compared(case(name).path, case(name).feed, seconds)
        except Exception as error:
            failures.append(f"{name}: {error}")
            continue
        ratio = row.numpy / row.kernels
        mark = "!" if ratio < TARGET else ""
        milliseconds = [f"{row.numpy * 1e3:.2f}", f"{row.kernels * 1e3:.2f}"]
        table.row([name, *milliseconds, f"{ratio:.1f}{mark}", f"{row.spread:.1%}", f"{row.error:.1e}", row.left])
        peers = {"NumPy": row.numpy * 1e3}
        found = measurement(name, "ms", row.kernels * 1e3, peers, spread=row.spread, higher_is_better=False)
        record.append({**found, "error": row.error})
    for line in failures:
        print(f"\n{line}")
    if arguments.json:
        write_json(arguments.json, {"cases": record, "failures": failures})
    return int(bool(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, little time each")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    names = lambda text: [name for name in text.split(",") if name in CASES]
    parser.add_argument("--only", type=names, default=[], help="identifiers of cases")
    return parser


if __name__ == "__main__":
    sys.exit(main())
