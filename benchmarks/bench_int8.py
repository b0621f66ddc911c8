"""INT8 with defaults: pumice against stock onnxruntime, and against recorded figures of NNCF, AIMET-ONNX and onnxsim.

    python benchmarks/bench_int8.py [--quick] [--json FILE] [--only ID,ID] [--no-peers]

Every case gets one row a variant: the metric with its 95% interval, the agreement with the float model, the file, the
latency in onnxruntime on one thread (median and quartiles, all variants of a case interleaved), the number of integer
kernels in the graph that onnxruntime executes and of layers that stayed float. Pumice runs with nothing but its
defaults; for the last stock row, and for each recorded tool, the best of several variants is picked by their result.

A verdict closes each case:
  metric    is our metric inside the float model's 95% interval, or better than that?
  best      is our agreement at least that of the best of all peers, and our file no larger than that peer's?
  size      is our agreement at least that of every peer whose file is no larger than ours?
  faster    is our upper quartile below the float model's lower one (`slightly`: only the median below its median)?
`tie` is a shortfall within the 95% interval of our agreement; `LARGER` says that our file is, whatever the agreement.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from measuring import Kernels, Latency, interleaved_latency, kernels
from models import CASES, Case, Evaluation, StoreError, case, onnxruntime_run, reference
from models.store import file_sha256
from peers import BEST_OF, STOCK, TOOLS, Failed, Recorded, Variant, digest, isolated, quantized, recorded, remembered
from tables import Table, measurement, write_json

QUICK = ("digits_cnn", "fashion_resnet", "fashion_mobile", "fashion_lstm")
"""Committed models whose whole row takes seconds; a quick table tries only min-max of the best-of variants."""
SECONDS, QUICK_SECONDS = 8.0, 1.0
FP32, OURS, BEST_LINEAR = "FP32", "pumice", "ort linear, best"
SAME_SIZE = 1.01
"""Files are equally large within one percent."""
FIRST_WORDS = 60
"""Characters of a peer's error in a note."""

COLUMNS = {
    "case": 14, "variant": 40, "metric [95%]": 32, "agreement": -9, "kB": -6, "ms [quartiles]": 20, "int/float": -9,
    "note": 8,
}  # fmt: skip
VERDICTS = {"case": 14, "metric": 6, "best": 60, "size": 50, "faster": 15}


@attrs.frozen(kw_only=True)
class Judgement:
    """What a file scored; all that can be remembered about it, since it does not depend on the machine's load."""

    value: float
    low: float
    high: float
    agreement: float
    agreement_low: float
    agreement_high: float
    integer: int
    floating: int


@attrs.frozen(kw_only=True)
class Row:
    """One variant of one case."""

    variant: str
    path: Path | None = None
    kilobytes: float = float("nan")
    judgement: Judgement | None = None
    latency: Latency | None = None
    error: str = ""
    note: str = ""
    account: dict[str, Any] = attrs.field(factory=dict)
    """Ours only: seconds, peak memory, ledger counts and headline."""


@attrs.frozen(kw_only=True)
class Rival:
    """A peer's agreement and file, live or recorded."""

    name: str
    agreement: float
    kilobytes: float


@attrs.frozen(kw_only=True)
class Verdict:
    """The answers to the four questions at the top, in words."""

    metric: str
    best: str
    size: str
    faster: str


def compress_with_defaults(path: Path, feeds: list[dict[str, np.ndarray]], target: Path) -> dict[str, Any]:
    """The whole of what a user does; every model here goes through these two calls and no others."""
    import pumice

    result = pumice.compress(path, data=feeds, measure=False)
    result.save(target)
    return {"headline": result.headline(), "ledger": result.ledger.counts(), "notes": list(result.notes)}


def main() -> int:
    """Print the table; 1 if a case, or our part of it, failed."""
    arguments = _parser().parse_args()
    try:
        chosen = [case(name) for name in arguments.only or (QUICK if arguments.quick else CASES)]
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    best_of = BEST_OF[:1] if arguments.quick else BEST_OF
    table = Table(COLUMNS)
    record: dict[str, Any] = {"cases": [], "details": [], "failures": []}
    verdicts: dict[str, Verdict] = {}
    for found in chosen:
        try:
            rows = _rows(found, seconds, () if arguments.no_peers else STOCK, () if arguments.no_peers else best_of)
            verdict = _account(found, rows, table, record)
        except Exception as error:  # one case that cannot be had or judged must not cost the others
            verdict = None
            table.row([found.id, "", *[""] * 5, f"{type(error).__name__}: {_first_line(error)}"])
            record["failures"].append({"case": found.id, "error": f"{type(error).__name__}: {error}"})
        if verdict:
            verdicts[found.id] = verdict
        if arguments.json:
            write_json(arguments.json, record)
    _summarize(verdicts)
    return 1 if record["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="INT8 with defaults against stock onnxruntime and recorded peers.")
    parser.add_argument("--quick", action="store_true", help="the small committed models only, few rounds of timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON, case by case")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ID,ID", help="these cases only")
    parser.add_argument("--no-peers", action="store_true", help="only FP32 and pumice")
    return parser


# --- measuring one case -----------------------------------------------------------------------------------------------


def _rows(found: Case, seconds: float, stock: Sequence[Variant], best_of: Sequence[Variant]) -> list[Row]:
    """Every variant of a case, judged and timed: FP32 first, ours second."""
    with tempfile.TemporaryDirectory() as work:
        _tell(f"{found.id}: float model")
        against = reference(found)
        rows = [_judged(found, Row(variant=FP32, path=found.path), against)]
        feeds = [dict(feed) for feed in found.calibration()]
        _tell(f"{found.id}: pumice")
        rows.append(_judged(found, _ours(found, feeds, Path(work) / "pumice.onnx"), against, remember=False))
        rows.extend(_stock(found, variant, feeds, against) for variant in stock)
        if best_of:
            rows.append(_best([_stock(found, variant, feeds, against) for variant in best_of]))
        _tell(f"{found.id}: latency")
        return _timed(rows, found, seconds)


def _ours(found: Case, feeds: list[dict[str, np.ndarray]], target: Path) -> Row:
    try:
        done = isolated(compress_with_defaults, found.path, feeds, target)
    except Failed as failure:
        return Row(variant=OURS, error=str(failure))
    account = {**done.value, "seconds": done.seconds, "peak_megabytes": done.peak_megabytes}
    tally = ", ".join(f"{count} {verdict}" for verdict, count in done.value["ledger"].items())
    return Row(variant=OURS, path=target, account=account, note=f"{done.seconds:.0f} s; {tally}")


def _stock(found: Case, variant: Variant, feeds: list[dict[str, np.ndarray]], against: Evaluation) -> Row:
    _tell(f"{found.id}: {variant.id}")
    made = quantized(variant, found.path, feeds)
    if made.error:
        return Row(variant=variant.id, error=made.error)
    return _judged(found, Row(variant=variant.id, path=made.path, note=f"{made.seconds:.0f} s"), against)


def _best(rows: list[Row]) -> Row:
    """The row that agrees most; it names its variant, and those that failed."""
    best = max(rows, key=lambda row: row.judgement.agreement if row.judgement else -1.0)
    failed = [f"{row.variant}: {row.error[:FIRST_WORDS]}" for row in rows if row.error and row is not best]
    chosen = best.variant.removeprefix("ort linear ")
    return attrs.evolve(best, variant=f"{BEST_LINEAR} ({chosen})", note="; ".join([best.note, *failed]))


def _judged(found: Case, row: Row, against: Evaluation, remember: bool = True) -> Row:
    """The row with its file evaluated on the case. The float model and peers are evaluated once and remembered under
    the file and the reference, which moves with the data and the metric."""
    if row.error or row.path is None:
        return row
    path = row.path

    def judge() -> dict[str, Any]:
        evaluation = found.evaluate(onnxruntime_run(path))
        return attrs.asdict(_judgement(found, evaluation, against, kernels(path)))

    key = digest(
        file_sha256(path), found.id, found.agreement_name, against.metric, against.scores, _plain(against.answers)
    )
    try:
        judgement = Judgement(**(remembered(key, judge) if remember else judge()))
    except Exception as error:  # a peer's file may be one that onnxruntime refuses
        return attrs.evolve(row, path=None, error=f"{type(error).__name__}: {_first_line(error)}")
    return attrs.evolve(row, judgement=judgement, kilobytes=path.stat().st_size / 1000)


def _judgement(found: Case, evaluation: Evaluation, against: Evaluation, counted: Kernels) -> Judgement:
    same = np.nan_to_num(found.agree(evaluation.answers, against.answers)).astype(float)
    agreement = Evaluation(metric="agreement", value=float(same.mean()), scores=same, answers=same)
    low, high = evaluation.interval()
    agreement_low, agreement_high = agreement.interval()
    return Judgement(
        value=evaluation.value,
        low=low,
        high=high,
        agreement=agreement.value,
        agreement_low=agreement_low,
        agreement_high=agreement_high,
        integer=counted.integer,
        floating=counted.floating,
    )


def _timed(rows: list[Row], found: Case, seconds: float) -> list[Row]:
    files = {row.variant: row.path for row in rows if row.path is not None}
    latencies = interleaved_latency(files, found.feed, seconds)
    return [attrs.evolve(row, latency=latencies.get(row.variant)) for row in rows]


# --- judging one case -------------------------------------------------------------------------------------------------


def _account(found: Case, rows: list[Row], table: Table, record: dict[str, Any]) -> Verdict | None:
    """Print and record a case; its verdict, or None if we failed."""
    metric, higher = (against := reference(found)).metric, against.higher_is_better
    for row in rows:
        table.row(_cells(found.id, metric, row))
    for result in _best_recorded(found.id):
        agreement = f"{result.agreement:.4f}"
        table.row([found.id, result.name, "", agreement, f"{result.kilobytes:.0f}", "", "", "recorded"])
    for other in _without_agreement(found.id):
        size = f"{other.kilobytes:.0f}"
        table.row(
            [found.id, other.id, f"{metric} {other.value:.4f}", "?", size, "", "", "recorded, no agreement: not judged"]
        )
    record["details"].extend(_detail(found.id, metric, row) for row in rows)
    float_row, ours = rows[0], rows[1]
    if ours.judgement is None or float_row.judgement is None:
        record["failures"].append({"case": found.id, "error": ours.error or float_row.error})
        return None
    record["cases"].extend(_measurements(found.id, metric, higher, rows))
    verdict = _verdict(found.id, rows, higher)
    table.row([found.id, "verdict", *[""] * 5, "; ".join(f"{k}: {v}" for k, v in attrs.asdict(verdict).items())])
    record["details"].append({"case": found.id, "verdict": attrs.asdict(verdict)})
    return verdict


def _verdict(name: str, rows: list[Row], higher: bool) -> Verdict:
    judged, ours = rows[0].judgement, rows[1]
    assert judged is not None
    assert ours.judgement is not None
    inside = ours.judgement.value >= judged.low if higher else ours.judgement.value <= judged.high
    rivals = _rivals(name, rows)
    best = max(rivals, key=_merit, default=None)
    small = [rival for rival in rivals if rival.kilobytes <= ours.kilobytes * SAME_SIZE]
    best_small = max(small, key=_merit, default=None)
    return Verdict(
        metric="yes" if inside else "NO",
        best=_size_caveat(ours, best) + _against(ours, best) if best else "no peer",
        size=_against(ours, best_small) if best_small else "yes, no peer is as small",
        faster=_faster(ours.latency, rows[0].latency),
    )


def _merit(rival: Rival) -> tuple[float, float]:
    """Agreement first; among equals the smaller file."""
    return rival.agreement, -rival.kilobytes


def _size_caveat(ours: Row, rival: Rival) -> str:
    return f"LARGER ({ours.kilobytes:.0f} kB), else " if ours.kilobytes > rival.kilobytes * SAME_SIZE else ""


def _against(ours: Row, rival: Rival) -> str:
    assert ours.judgement is not None
    if ours.judgement.agreement >= rival.agreement:
        word = "yes"
    elif ours.judgement.agreement_high >= rival.agreement:
        word = "tie"
    else:
        word = "NO"
    return f"{word}, {rival.agreement:.4f} at {rival.kilobytes:.0f} kB ({rival.name})"


def _faster(ours: Latency | None, floating: Latency | None) -> str:
    if ours is None or floating is None:
        return "not timed"
    ratio = f"{floating.median / ours.median:.2f}x"
    if ours.upper < floating.lower:
        return f"yes, {ratio}"
    return f"slightly, {ratio}" if ours.median < floating.median else f"NO, {ratio}"


def _rivals(name: str, rows: Sequence[Row]) -> list[Rival]:
    live = [
        Rival(name=row.variant, agreement=row.judgement.agreement, kilobytes=row.kilobytes)
        for row in rows[2:]
        if row.judgement
    ]
    return [*live, *_best_recorded(name)]


def _best_recorded(name: str) -> Iterator[Rival]:
    """The result of each tool that agrees most."""
    results = [result for result in recorded(name) if result.agreement is not None]
    for tool in TOOLS:
        mine = [result for result in results if result.tool == tool]
        if mine:
            best = max(mine, key=lambda result: result.agreement)
            yield Rival(name=best.id, agreement=best.agreement, kilobytes=best.kilobytes)


def _without_agreement(name: str) -> list[Recorded]:
    """Recorded results that no verdict can use, shown so that none goes missing."""
    return [result for result in recorded(name) if result.agreement is None]


# --- showing ----------------------------------------------------------------------------------------------------------


def _cells(name: str, metric: str, row: Row) -> list[str]:
    if row.judgement is None:
        return [name, row.variant, *[""] * 5, row.error[:120]]
    found, latency = row.judgement, row.latency
    timed = f"{latency.median:.3f} [{latency.lower:.3f}, {latency.upper:.3f}]" if latency else ""
    return [
        name,
        row.variant,
        f"{metric} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]",
        f"{found.agreement:.4f}",
        f"{row.kilobytes:.0f}",
        timed,
        f"{found.integer}/{found.floating}",
        row.note,
    ]


def _summarize(verdicts: dict[str, Verdict]) -> None:
    print()
    table = Table(VERDICTS)
    for name, verdict in verdicts.items():
        table.row([name, verdict.metric, verdict.best, verdict.size, verdict.faster])


def _measurements(name: str, metric: str, higher: bool, rows: list[Row]) -> list[dict[str, Any]]:
    ours = rows[1]
    judgement = ours.judgement
    assert judgement is not None
    judged = {row.variant: row for row in rows if row.judgement and row is not ours}
    rivals = _rivals(name, rows)
    entries = [
        measurement(
            name,
            metric,
            judgement.value,
            {variant: row.judgement.value for variant, row in judged.items()},
            spread=_relative(judgement.low, judgement.high, judgement.value),
            higher_is_better=higher,
        ),
        measurement(
            name,
            "agreement with FP32",
            judgement.agreement,
            {rival.name: rival.agreement for rival in rivals},
            spread=_relative(judgement.agreement_low, judgement.agreement_high, judgement.agreement),
            higher_is_better=True,
        ),
        measurement(
            name,
            "file kB",
            ours.kilobytes,
            {FP32: rows[0].kilobytes, **{rival.name: rival.kilobytes for rival in rivals}},
            spread=0.0,
            higher_is_better=False,
        ),
    ]
    if ours.latency:
        timed = {variant: row.latency.median for variant, row in judged.items() if row.latency}
        latency = ours.latency
        entries.append(
            measurement(name, "latency ms", latency.median, timed, spread=latency.spread, higher_is_better=False)
        )
    return entries


def _detail(name: str, metric: str, row: Row) -> dict[str, Any]:
    return {
        "case": name,
        "variant": row.variant,
        "metric": metric,
        "kilobytes": row.kilobytes if row.judgement else None,
        "judgement": row.judgement and attrs.asdict(row.judgement),
        "latency_ms": row.latency and attrs.asdict(row.latency),
        "error": row.error,
        **row.account,
    }


def _relative(low: float, high: float, value: float) -> float:
    return (high - low) / 2 / abs(value) if value else 0.0


def _plain(answers: np.ndarray) -> Any:
    """Answers as `digest` takes them: text has no bytes that are the same everywhere."""
    return answers.tolist() if answers.dtype.kind in "OU" else answers


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
