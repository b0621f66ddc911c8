"""Weights of few bits: what every technique costs and gains on each model, in onnxruntime and in pumice's own plan.

    python benchmarks/bench_lowbit.py [--quick] [--json FILE] [--only ID,ID] [--variants NAME,NAME] [--clustering]

One row a model and variant: the metric with its 95% interval, the agreement with the float model, the bytes of the
weights and how many times fewer they are, the latency on one thread in onnxruntime and in the plan with the installed
kernels (median and quartiles, all variants of a case taking turns). Accuracy budgets are off, so that a row shows the
technique alone; only `mixed` keeps its own. `points` is what the metric lost in points (percent of itself where it is
no share). `--clustering` times k-means alone on a layer of 4096 by 4096.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from measuring import Latency, interleaved_latency
from models import CASES, Case, Evaluation, StoreError, case, onnxruntime_run, reference
from tables import Table, measurement, write_json

QUICK = ("digits_cnn", "fashion_resnet", "fashion_lstm")
SECONDS, QUICK_SECONDS = 4.0, 0.5
FP32 = "FP32"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"name": "int8"},
    "int4 textbook": {"name": "int4", "block": 32, "scales": "minmax", "rounding": "nearest"},
    "int4 hqq": {"name": "int4", "block": 32, "scales": "hqq", "rounding": "nearest"},
    "int4": {"name": "int4"},
    "kmeans plain": {
        "name": "kmeans",
        "codebook": "tensor",
        "weighting": "none",
        "rounding": "nearest",
        "refit": False,
    },
    "kmeans tensor": {"name": "kmeans", "codebook": "tensor"},
    "kmeans scaled": {"name": "kmeans", "codebook": "scaled"},
    "kmeans channel": {"name": "kmeans", "codebook": "channel", "table": "int8"},
    "kmeans group": {"name": "kmeans", "codebook": "group", "table": "int8"},
    "dynamic": {"name": "dynamic"},
    "mixed": {"name": "mixed"},
}
OWN_BUDGET = frozenset({"mixed"})
QUICK_VARIANTS = ("int8", "int4", "kmeans tensor", "kmeans scaled")
COLUMNS = {
    "case": 14, "variant": 15, "metric [95%]": 34, "points": -7, "agreement": -9, "kB": -7, "smaller": -7,
    "ort ms": 20, "plan ms": 20, "note": 8,
}  # fmt: skip
SIDE = 4096


@attrs.frozen(kw_only=True)
class Row:
    """One variant of one case."""

    variant: str
    path: Path | None = None
    evaluation: Evaluation | None = None
    agreement: float = float("nan")
    weights: int = 0
    """Bytes of all weights."""
    ort: Latency | None = None
    plan: Latency | None = None
    seconds: float = 0.0
    """To compress it."""
    note: str = ""


def main() -> int:
    """Print the table; 1 if a variant failed."""
    arguments = _parser().parse_args()
    record: dict[str, Any] = {"cases": [], "details": []}
    try:
        chosen = [case(name) for name in arguments.only or (QUICK if arguments.quick else CASES)]
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.clustering:
        record["clustering"] = _clustering()
        chosen = [case(name) for name in arguments.only or ()]
    names = arguments.variants or (QUICK_VARIANTS if arguments.quick else _installed())
    table, failed = Table(COLUMNS), False
    for found in chosen:
        try:
            rows = _rows(found, names, QUICK_SECONDS if arguments.quick else SECONDS)
        except StoreError as error:  # a case that cannot be had must not cost the others
            table.row([found.id, "", *[""] * 7, str(error)[:90]])
            failed = True
            continue
        for row in rows:
            table.row(_cells(found, row, rows[0]))
        record["cases"] += _measurements(found, rows)
        record["details"] += [_detail(found, row, rows[0]) for row in rows]
        failed |= any(row.evaluation is None for row in rows)
        if arguments.json:
            write_json(arguments.json, record)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Weights of few bits: accuracy, size and speed.")
    parser.add_argument(
        "--quick", action="store_true", help="small committed models, few variants, few rounds of timing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON, case by case")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ID,ID", help="these cases only")
    parser.add_argument(
        "--variants", type=lambda text: text.split(","), metavar="NAME,NAME", help="these variants only"
    )
    parser.add_argument("--clustering", action="store_true", help="time k-means alone (with --only: cases as well)")
    return parser


def _installed() -> list[str]:
    from pumice.registry import registry

    known = registry().strategies("quantizer")
    return [name for name, quantizer in VARIANTS.items() if quantizer["name"] in known]


# --- one case ---------------------------------------------------------------------------------------------------------


def _rows(found: Case, names: list[str], seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory() as work:
        _tell(f"{found.id}: {FP32}")
        against = reference(found)
        feeds = [dict(feed) for feed in found.calibration()]
        rows = [
            Row(variant=FP32, path=found.path, evaluation=against, agreement=1.0, weights=_weight_bytes(found.path))
        ]
        for name in names:
            _tell(f"{found.id}: {name}")
            rows.append(_attempt(found, name, feeds, against, Path(work) / f"{name}.onnx"))
        return _timed(rows, found, seconds)


def _attempt(found: Case, name: str, feeds: list[dict[str, np.ndarray]], against: Evaluation, target: Path) -> Row:
    from pumice.errors import PumiceError

    began = time.perf_counter()
    try:
        _compress(found.path, name, feeds, target)
        seconds = time.perf_counter() - began
        evaluation = found.evaluate(onnxruntime_run(target))
    except PumiceError as error:  # a technique that does not apply to a model says so
        return Row(variant=name, note=str(error)[:90])
    return Row(
        variant=name,
        path=target,
        evaluation=evaluation,
        agreement=found.agreement(evaluation, against),
        weights=_weight_bytes(target),
        seconds=seconds,
        note=f"{seconds:.0f} s",
    )


def _compress(path: Path, name: str, feeds: list[dict[str, np.ndarray]], target: Path) -> None:
    import pumice

    step = {"use": "quantize", "quantizer": dict(VARIANTS[name])}
    if name not in OWN_BUDGET:
        step["max_drop"] = 1.0
    pumice.compress(path, data=feeds, recipe={"step": [step]}, measure=False).save(target)


def _weight_bytes(path: Path) -> int:
    import onnx_ir as ir

    from pumice.model import size

    return size(ir.load(path)).total


def _timed(rows: list[Row], found: Case, seconds: float) -> list[Row]:
    files = {row.variant: row.path for row in rows if row.path is not None}
    ort = interleaved_latency(files, found.feed, seconds)
    plan = _plan_latency(files, found.feed, seconds)
    return [attrs.evolve(row, ort=ort.get(row.variant), plan=plan.get(row.variant)) for row in rows]


def _plan_latency(files: Mapping[str, Path], feed: Mapping[str, np.ndarray], seconds: float) -> dict[str, Latency]:
    """Of every file in pumice's own plan, with the installed kernels."""
    from pumice.model import load
    from pumice.plan import compile_plan
    from pumice.registry import registry

    known = registry()
    plans = {name: compile_plan(load(path), ops=known.ops, kernels=known.kernels) for name, path in files.items()}
    runs: dict[str, Callable[[], Any]] = {name: lambda plan=plan: plan.run(feed) for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(next(iter(times.values()))) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Latency(*map(float, np.percentile(found, [50, 25, 75]))) for name, found in times.items()}


# --- k-means alone ----------------------------------------------------------------------------------------------------


def _clustering() -> dict[str, float]:
    """Seconds for 16 centroids an output of a layer of 4096 by 4096, and for one codebook for all of it."""
    from pumice_quant_kmeans.clustering import Rows, lloyd, plus_plus_start

    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    found = {}
    for what, points in (("an output", weights), ("a tensor", weights.reshape(1, -1))):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            rows = Rows.of(points)
            lloyd(rows, plus_plus_start(rows, 16, 0))
            times.append(time.perf_counter() - began)
        found[what] = min(times)
        print(f"k-means, 16 centroids {what}, {SIDE} x {SIDE}: {found[what]:.2f} s")
    return found


# --- showing ----------------------------------------------------------------------------------------------------------


def _cells(found: Case, row: Row, floating: Row) -> list[str]:
    if row.evaluation is None:
        return [found.id, row.variant, *[""] * 7, row.note]
    low, high = row.evaluation.interval()
    return [
        found.id,
        row.variant,
        f"{row.evaluation.metric} {row.evaluation.value:.4f} [{low:.4f}, {high:.4f}]",
        f"{_points(row, floating):+.2f}",
        f"{row.agreement:.4f}",
        f"{row.weights / 1000:.0f}",
        f"{floating.weights / row.weights:.2f}x",
        _milliseconds(row.ort),
        _milliseconds(row.plan),
        row.note,
    ]


def _points(row: Row, floating: Row) -> float:
    """What was lost: points of a share, percent of any other metric; negative is a gain."""
    assert row.evaluation is not None
    assert floating.evaluation is not None
    before, after = floating.evaluation.value, row.evaluation.value
    if floating.evaluation.higher_is_better:
        return 100.0 * (before - after)
    return 100.0 * (after - before) / abs(before)


def _milliseconds(latency: Latency | None) -> str:
    return f"{latency.median:.3f} [{latency.lower:.3f}, {latency.upper:.3f}]" if latency else ""


def _measurements(found: Case, rows: list[Row]) -> list[dict[str, Any]]:
    """Every variant against the float model."""
    entries = []
    for row in rows[1:]:
        if row.evaluation is None or rows[0].evaluation is None:
            continue
        low, high = row.evaluation.interval()
        spread = (high - low) / 2 / abs(row.evaluation.value) if row.evaluation.value else 0.0
        name, higher = f"{found.id}, {row.variant}", row.evaluation.higher_is_better
        base = {FP32: rows[0].evaluation.value}
        entries.append(
            measurement(name, row.evaluation.metric, row.evaluation.value, base, spread=spread, higher_is_better=higher)
        )
        sizes = {FP32: float(rows[0].weights)}
        entries.append(measurement(name, "weight bytes", float(row.weights), sizes, spread=0.0, higher_is_better=False))
        for what, ours, theirs in (("onnxruntime ms", row.ort, rows[0].ort), ("plan ms", row.plan, rows[0].plan)):
            if ours and theirs:
                times = {FP32: theirs.median}
                entries.append(measurement(name, what, ours.median, times, spread=ours.spread, higher_is_better=False))
    return entries


def _detail(found: Case, row: Row, floating: Row) -> dict[str, Any]:
    judged = row.evaluation
    return {
        "case": found.id,
        "variant": row.variant,
        "value": judged and judged.value,
        "interval": judged and judged.interval(),
        "points_lost": judged and _points(row, floating),
        "agreement": row.agreement if judged else None,
        "weight_bytes": row.weights,
        "ort_ms": row.ort and attrs.asdict(row.ort),
        "plan_ms": row.plan and attrs.asdict(row.plan),
        "seconds": row.seconds,
        "note": row.note,
    }


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
