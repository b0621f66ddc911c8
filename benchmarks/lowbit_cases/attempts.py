"""One technique on one model, each a run of its own: compressed, judged and weighed; then all timed in turns.

Every attempt leaves a record (`runs.py`) and, in the folder of the records, the model that it made. No attempt takes
longer than it may.
"""

import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import numpy as np
from models import Case, Evaluation, case, onnxruntime_run, reference
from runs import Record, Run
from tables import Table, measurement

from pumice.errors import PumiceError
from pumice.ledger import Ledger
from pumice.measure import interleaved_latency, pick_runtime
from pumice.model import load, simplify, size
from pumice.strategy import Runtime

FP32 = "FP32"
RUNTIMES: Mapping[str, Mapping[str, str]] = {"ort": {}, "native": {}, "fast": {"mode": "fast"}}
"""Columns of latency; `fast` is the runtime native with a range for every row of what is quantized while it runs."""
COLUMNS = {
    "case": 14, "variant": 15, "metric [95%]": 34, "points": -7, "agreement": -9, "weights kB": -10, "smaller": -7,
    "file kB": -8, "ort ms": 20, "native ms": 20, "fast ms": 20, "note": 8,
}  # fmt: skip
Make = Callable[[Case, Path], str]
"""Writes a case's model, compressed, to a file, and returns what there is to say about it."""


class TookTooLongError(Exception):
    """An attempt was stopped."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop what is inside after so many seconds, with TookTooLongError."""
    said = f"stopped after {seconds:.0f} s"
    fired = []

    def stop(_signal: int, _frame: FrameType | None) -> None:
        fired.append(said)
        raise TookTooLongError(said)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if fired:  # libraries wrap whatever they are stopped by
            raise TookTooLongError(said) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@attrs.frozen(kw_only=True)
class Row:
    """One variant of one case; one with only a note where the technique does not apply, or takes too long."""

    case: str
    variant: str
    metric: str = ""
    value: float | None = None
    interval: Sequence[float] = ()
    higher_is_better: bool = True
    points: float | None = None
    """What the metric lost: points of a share, percent of any other metric; negative is a gain."""
    agreement: float | None = None
    weights_bytes: int = 0
    """Of the layers' weights, with the scales, tables and shapes that they are stored with."""
    smaller: float = 1.0
    """How many times fewer these are."""
    file_bytes: int = 0
    latency: Mapping[str, Sequence[float]] = attrs.field(factory=dict)
    """Median and quartiles in ms."""
    note: str = ""


def file_of(folder: Path, case_id: str, variant: str) -> Path:
    """Where an attempt leaves its model."""
    return folder / f"{case_id}-{re.sub(r'[^a-z0-9]+', '-', variant.lower())}.onnx"


def attempted(case_id: str, variant: str, make: Make, limit: float, folder: Path) -> Row:
    """What a variant is worth.

    Args:
        case_id: of the model.
        variant: its name.
        make: the technique.
        limit: seconds for making and judging it.
        folder: of the models.
    """
    found, target = case(case_id), file_of(folder, case_id, variant)
    against = reference(found)
    began = time.perf_counter()
    try:
        with at_most(limit):
            said = make(found, target)
            note = f"{time.perf_counter() - began:.0f} s{f'; {said}' if said else ''}"
            evaluation = found.evaluate(onnxruntime_run(target))
    except (PumiceError, TookTooLongError) as error:  # a technique that does not apply to a model says so
        target.unlink(missing_ok=True)
        return Row(case=case_id, variant=variant, note=str(error)[:90])
    before, after = weights_bytes(found.path, target)
    row = judged(found, variant, evaluation, against, note)
    return attrs.evolve(row, weights_bytes=after, smaller=before / after, file_bytes=target.stat().st_size)


def judged(found: Case, variant: str, evaluation: Evaluation, against: Evaluation, note: str) -> Row:
    """The row of an evaluation, beside the original's."""
    lost = against.value - evaluation.value if evaluation.higher_is_better else evaluation.value - against.value
    return Row(
        case=found.id, variant=variant, metric=evaluation.metric, value=evaluation.value,
        interval=evaluation.interval(), higher_is_better=evaluation.higher_is_better,
        points=100.0 * (lost if evaluation.higher_is_better else lost / abs(against.value)),
        agreement=found.agreement(evaluation, against), note=note,
    )  # fmt: skip


def floating(case_id: str, _folder: Path) -> Row:
    """The original."""
    found = case(case_id)
    against = reference(found)
    nbytes, _ = weights_bytes(found.path, found.path)
    row = judged(found, FP32, against, against, "")
    return attrs.evolve(row, weights_bytes=nbytes, file_bytes=found.path.stat().st_size)


def weights_bytes(before: Path, after: Path) -> tuple[int, int]:
    """Bytes of the layers' weights in both models, with all that the second has besides what both have.

    Biases, normalization and what else is no weight are the same bytes in both, as every technique folds them.
    """
    from pumice.quantize.weight_matrices import weight_matrices

    original = load(before)
    simplify(original, Ledger())
    weights = sum(4 * int(np.prod(m.shape)) for m in weight_matrices(iter(original.graph)))
    rest = size(original).total - weights
    return weights, weights if after == before else size(load(after)).total - rest


def latencies(case_id: str, variants: Sequence[str], seconds: float, folder: Path) -> Record:
    """Median and quartiles on one thread, in ms, by variant and runtime: all take turns, about `seconds` for each."""
    found = case(case_id)
    paths = {FP32: found.path} | {v: path for v in variants if (path := file_of(folder, case_id, v)).exists()}
    calls: dict[str, Callable[[], Any]] = {}
    for variant, path in paths.items():
        for runtime in RUNTIMES:
            session = _runtime(runtime).open(load(path), threads=1)
            calls[f"{variant}/{runtime}"] = lambda session=session: session.run(dict(found.feed))
    times = interleaved_latency(calls, seconds=seconds)
    figures = {name: (found.median, found.low, found.high) for name, found in times.items()}
    return {v: {runtime: figures[f"{v}/{runtime}"] for runtime in RUNTIMES} for v in paths}


def _runtime(column: str) -> Runtime:
    return attrs.evolve(pick_runtime("native" if column == "fast" else column), **RUNTIMES[column])


def compressed(found: Case, quantizer: Mapping[str, Any], path: Path, /, **step: Any) -> str:
    """The model as a quantizer makes it, with no budget unless `step` has one."""
    import pumice

    recipe = {"step": [{"use": "quantize", "quantizer": dict(quantizer), "max_drop": 1.0, **step}]}
    feeds = [dict(feed) for feed in found.calibration()]
    pumice.compress(found.path, data=feeds, recipe=recipe, measure=False).save(path)
    return ""


# --- of a part --------------------------------------------------------------------------------------------------------


def original(case_id: str) -> Run:
    """What all attempts of a case begin after."""
    return Run(name=f"{case_id}/{FP32}", function=floating, arguments=(case_id,))


def timing(part: str, case_id: str, attempts: Sequence[Run], variants: Sequence[str], seconds: float) -> Run:
    """The latencies of what the attempts left."""
    return Run(
        name=f"{part}/{case_id}/latency", function=latencies, arguments=(case_id, tuple(variants), seconds),
        after=tuple(run.name for run in attempts),
    )  # fmt: skip


def show(part: str, cases: Sequence[str], variants: Sequence[str], records: Mapping[str, Record]) -> list[Row]:
    """Print what there is of a part, and return it."""
    table, shown = Table(COLUMNS), []
    for case_id in cases:
        names = {FP32: f"{case_id}/{FP32}"} | {variant: f"{part}/{case_id}/{variant}" for variant in variants}
        times = records.get(f"{part}/{case_id}/latency", {})
        rows = [
            attrs.evolve(Row(**records[name]), latency=times.get(variant, {}))
            for variant, name in names.items()
            if name in records
        ]
        for row in rows if len(rows) > 1 else []:
            table.row(_cells(row))
            shown.append(row)
    return shown


def _cells(row: Row) -> list[str]:
    if row.value is None:
        return [row.case, row.variant, *[""] * (len(COLUMNS) - 3), row.note]
    low, high = row.interval
    weighed = [f"{row.weights_bytes / 1000:.1f}", f"{row.smaller:.2f}x", f"{row.file_bytes / 1000:.1f}"]
    return [
        row.case, row.variant, f"{row.metric} {row.value:.4f} [{low:.4f}, {high:.4f}]", f"{row.points:+.2f}",
        f"{row.agreement:.4f}", *(weighed if row.file_bytes else [""] * 3),
        *(_milliseconds(row.latency.get(runtime)) for runtime in RUNTIMES), row.note,
    ]  # fmt: skip


def _milliseconds(latency: Sequence[float] | None) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*latency) if latency else ""


def measurements(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every variant against the original of its case, as `cases` of the JSON."""
    originals, entries = {row.case: row for row in rows if row.variant == FP32}, []
    for row in rows:
        against = originals[row.case]
        if row is against or row.value is None or against.value is None:
            continue
        spread = (row.interval[1] - row.interval[0]) / 2 / abs(row.value) if row.value else 0.0
        figures = [(row.metric, row.value, against.value, spread, row.higher_is_better)]
        if row.file_bytes:
            figures.append(("weights' bytes", row.weights_bytes, against.weights_bytes, 0.0, False))
            figures.append(("bytes of the file", row.file_bytes, against.file_bytes, 0.0, False))
        for runtime, (median, low, high) in row.latency.items():
            figures.append((f"{runtime} ms", median, against.latency[runtime][0], (high - low) / 2 / median, False))
        entries += [
            measurement(f"{row.case}, {row.variant}", what, ours, {FP32: theirs}, spread=spread, higher_is_better=best)
            for what, ours, theirs, spread, best in figures
        ]
    return entries


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
