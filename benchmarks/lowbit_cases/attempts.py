"""One technique on one model: compressed, judged, weighed, timed. No attempt takes longer than it may."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import numpy as np
from models import Case, Evaluation, Feed, onnxruntime_run
from tables import measurement

from pumice.errors import PumiceError
from pumice.measure import Latency, interleaved_latency, pick_runtime
from pumice.model import load, size
from pumice.strategy import Runtime

FP32 = "FP32"
RUNTIMES: Mapping[str, Mapping[str, str]] = {"ort": {}, "native": {}, "fast": {"mode": "fast"}}
"""Columns of latency; `fast` is the runtime native with a range for every row of what is quantized while it runs."""
COLUMNS = {
    "case": 14, "variant": 15, "metric [95%]": 34, "points": -7, "agreement": -9, "kB": -7, "layers' weights": -15,
    "ort ms": 20, "native ms": 20, "fast ms": 20, "note": 8,
}  # fmt: skip


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
    """One variant of one case."""

    variant: str
    path: Path | None = None
    evaluation: Evaluation | None = None
    agreement: float = float("nan")
    nbytes: int = 0
    """Of all initializers."""
    smaller: float = 1.0
    """How many times fewer bytes the layers' weights take, scales and tables counted."""
    latency: Mapping[str, Latency] = attrs.field(factory=dict)
    note: str = ""


def floating(found: Case, against: Evaluation) -> Row:
    """The original."""
    return Row(variant=FP32, path=found.path, evaluation=against, agreement=1.0, nbytes=size(load(found.path)).total)


def attempt(
    found: Case, name: str, make: Callable[[Path], str], against: Evaluation, target: Path, limit: float
) -> Row:
    """A row; one with only a note where the technique does not apply, or takes longer than `limit` seconds.

    Args:
        found: the case.
        name: of the variant.
        make: writes the model to a file and returns what there is to say about it.
        against: the evaluation of the original.
        target: where to write.
        limit: for making and judging it.
    """
    tell(f"{found.id}: {name}")
    began = time.perf_counter()
    try:
        with at_most(limit):
            said = make(target)
            note = f"{time.perf_counter() - began:.0f} s{f'; {said}' if said else ''}"
            evaluation = found.evaluate(onnxruntime_run(target))
    except (PumiceError, TookTooLongError) as error:  # a technique that does not apply to a model says so
        return Row(variant=name, note=str(error)[:90])
    agreement = found.agreement(evaluation, against)
    nbytes, smaller = size(load(target)).total, weights_ratio(found.path, target)
    return Row(
        variant=name, path=target, evaluation=evaluation, agreement=agreement, nbytes=nbytes, smaller=smaller, note=note
    )


def weights_ratio(before: Path, after: Path) -> float:
    """How many times fewer bytes the layers' weights take, with all that was added to store them."""
    from pumice.quantize.weight_matrices import weight_matrices

    original = load(before)
    weights = {str(m.value.name): 4 * int(np.prod(m.shape)) for m in weight_matrices(iter(original.graph))}
    rest = size(original).total - sum(weights.values())
    return sum(weights.values()) / (size(load(after)).total - rest)


def timed(rows: Sequence[Row], feed: Feed, seconds: float) -> list[Row]:
    """The rows with latencies on one thread, of all in both runtimes, taking turns; about `seconds` for each."""
    calls: dict[str, Callable[[], Any]] = {}
    for row in rows:
        for runtime in RUNTIMES if row.path is not None else ():
            assert row.path is not None
            session = _runtime(runtime).open(load(row.path), threads=1)
            calls[f"{row.variant}/{runtime}"] = lambda session=session: session.run(dict(feed))
    found = interleaved_latency(calls, seconds=seconds)
    return [
        attrs.evolve(row, latency={r: found[f"{row.variant}/{r}"] for r in RUNTIMES if row.path is not None})
        for row in rows
    ]


def _runtime(column: str) -> Runtime:
    return attrs.evolve(pick_runtime("native" if column == "fast" else column), **RUNTIMES[column])


def points(row: Row, against: Row) -> float:
    """What was lost: points of a share, percent of any other metric; negative is a gain."""
    assert row.evaluation is not None
    assert against.evaluation is not None
    before, after = against.evaluation.value, row.evaluation.value
    return 100.0 * (before - after) if against.evaluation.higher_is_better else 100.0 * (after - before) / abs(before)


def cells(found: Case, row: Row, against: Row) -> list[str]:
    """A line of the table."""
    if row.evaluation is None:
        return [found.id, row.variant, *[""] * (len(COLUMNS) - 3), row.note]
    low, high = row.evaluation.interval()
    return [
        found.id, row.variant, f"{row.evaluation.metric} {row.evaluation.value:.4f} [{low:.4f}, {high:.4f}]",
        f"{points(row, against):+.2f}", f"{row.agreement:.4f}", f"{row.nbytes / 1000:.0f}", f"{row.smaller:.2f}x",
        *(_milliseconds(row.latency.get(runtime)) for runtime in RUNTIMES), row.note,
    ]  # fmt: skip


def _milliseconds(latency: Latency | None) -> str:
    return f"{latency.median:.3f} [{latency.low:.3f}, {latency.high:.3f}]" if latency else ""


def measurements(found: Case, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every variant against the original, as `cases` of the JSON."""
    entries, against = [], rows[0]
    for row in rows[1:]:
        if row.evaluation is None or against.evaluation is None:
            continue
        low, high = row.evaluation.interval()
        spread = (high - low) / 2 / abs(row.evaluation.value) if row.evaluation.value else 0.0
        name, higher = f"{found.id}, {row.variant}", row.evaluation.higher_is_better
        figures = [(row.evaluation.metric, row.evaluation.value, against.evaluation.value, spread, higher)]
        figures.append(("bytes", float(row.nbytes), float(against.nbytes), 0.0, False))
        for runtime in RUNTIMES:
            if runtime in row.latency:
                ours, theirs = row.latency[runtime], against.latency[runtime]
                figures.append(
                    (f"{runtime} ms", ours.median, theirs.median, (ours.high - ours.low) / 2 / ours.median, False)
                )
        entries += [
            measurement(name, what, ours, {FP32: theirs}, spread=spread, higher_is_better=better)
            for what, ours, theirs, spread, better in figures
        ]
    return entries


def detail(found: Case, row: Row, against: Row) -> dict[str, Any]:
    """All that is known of a row."""
    judged = row.evaluation
    return {
        "case": found.id, "variant": row.variant, "value": judged and judged.value,
        "interval": judged and judged.interval(), "points_lost": judged and points(row, against),
        "agreement": row.agreement if judged else None, "bytes": row.nbytes, "weights_smaller": row.smaller,
        **{f"{runtime}_ms": [v.median, v.low, v.high] for runtime, v in row.latency.items()}, "note": row.note,
    }  # fmt: skip


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
