"""The plan with the installed kernels against the plan in NumPy alone, on real float models, end to end.

    python benchmarks/bench_plan.py [--quick] [--json FILE] [--only ID,ID] [--threads 1,2] [--batch 1,32]

One row a model, number of threads and batch, each in a process of its own that is bound to as many cores. Batches are
one sample, and as many as evaluation, calibration and training take at a time. Both plans take turns of a few runs on
the model's timing feed, repeated to the batch where the model leaves that free; times are medians, the spread is half
the distance of the quartiles, relative. `error` is the largest difference of an output, relative to the largest value
of that output; `NumPy still` names the operators that took most of the time among those that no kernel computes.
`resnet50` has that network's shape and random weights, a picture of 224 x 224.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import CASES, case, networks
from tables import Table, measurement, write_json

from pumice.data.dataset import DEFAULT_BATCH
from pumice.model import load
from pumice.plan import Plan, compile_plan
from pumice.registry import registry

RESNET50 = "resnet50"
DEFAULT = ("effnet_lite0", RESNET50, "minilm", "fashion_lstm", "char_lstm", "fashion_resnet", "fashion_mobile",
           "fashion_vit", "crepe_tiny", "silero_vad", "ocr_rec_v4")  # fmt: skip
QUICK = ("minilm", "fashion_lstm", "fashion_resnet", "fashion_mobile")
TARGET = 5.0
SECONDS, QUICK_SECONDS, FEWEST, MOST = 6.0, 1.0, 3, 100
TURN, REST = 5, 0.15
"""Runs in a row, and seconds between two turns, in which threads that wait by spinning fall asleep."""
COLUMNS = {"case": 16, "threads": -7, "batch": -5, "NumPy ms": -9, "kernels ms": -10, "ratio": -6, "spread": -6,
           "error": -8, "NumPy still": 30}  # fmt: skip


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
    model = load(path)
    plans = [compile_plan(model, kernels=()), compile_plan(model)]
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


def measured(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """The record of one model in this process."""
    if name == RESNET50:
        with tempfile.TemporaryDirectory() as folder:
            path = networks.resnet50(Path(folder) / "resnet50.onnx")
            feed = {"x": np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)}
            return attrs.asdict(compared(path, feed, seconds))
    feed = {name: np.concatenate([array] * batch) for name, array in case(name).feed.items()}
    return attrs.asdict(compared(case(name).path, feed, seconds))


def in_process(name: str, threads: int, batch: int, seconds: float) -> Compared:
    """The record of one model and batch in a process with so many threads and cores.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--child", name, str(threads), str(batch), str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else f"exit code {done.returncode}")
    return Compared(**json.loads(done.stdout))


def child(name: str, threads: str, batch: str, seconds: str) -> int:
    """Print the record of one model as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    print(json.dumps(measured(name, int(batch), float(seconds))))
    return 0


def main() -> int:
    """Print the table; 1 if a model failed."""
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    arguments = _parser().parse_args()
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    table, record, failures = Table(COLUMNS), [], []
    for name in arguments.only or (QUICK if arguments.quick else DEFAULT):
        for threads, batch in itertools.product(arguments.threads, arguments.batch):
            try:
                row = in_process(name, threads, batch, seconds)
            except RuntimeError as error:
                failures.append(f"{name}, batch {batch}: {error}")
                continue
            ratio = row.numpy / row.kernels
            mark = "!" if ratio < TARGET else ""
            times = [f"{row.numpy * 1e3:.2f}", f"{row.kernels * 1e3:.2f}"]
            figures = [f"{ratio:.1f}{mark}", f"{row.spread:.1%}", f"{row.error:.1e}"]
            table.row([name, str(threads), str(batch), *times, *figures, row.left])
            peers, label = {"NumPy": row.numpy * 1e3}, f"{name}, {threads} threads, batch {batch}"
            found = measurement(label, "ms", row.kernels * 1e3, peers, spread=row.spread, higher_is_better=False)
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
    names = lambda text: [name for name in text.split(",") if name in CASES or name == RESNET50]
    parser.add_argument("--only", type=names, default=[], help="identifiers of cases")
    counts = lambda text: [int(count) for count in text.split(",")]
    parser.add_argument("--threads", type=counts, default=[1, 2], help="numbers of threads")
    parser.add_argument("--batch", type=counts, default=[1, DEFAULT_BATCH], help="samples at a time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
