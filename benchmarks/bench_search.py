"""The search against defaults: what `pumice auto` finds within some minutes, and what others make of the same model.

    python benchmarks/bench_search.py [--quick] [--json FILE] [--only ID;ID] [--minutes 20] [--workers 1]
        [--without PEER;PEER] [--answers FOLDER] [--studies FOLDER]

Every question may lose one point of accuracy, or 1% of fidelity where the user has no labels (`search_cases`); some ask
for a tenth of the size besides, with pruning allowed. A row is one file: the metric with its 95% interval on what
judges and nobody was given, what it lost there (without labels: of the agreement with the original, or of the cosine),
its size, and its latency on one thread in onnxruntime and in our runtime, all files of a question taking turns.
`gain` is times faster in onnxruntime times times smaller, the objective of the search; a file that breaks a limit has
none.

With `--answers` what was found and made is kept, and taken from there (`search_cases/answers.py`): searches may run on
one machine, rivals be made on another, and all be timed together on a third.

Below each question: how the best feasible gain grew with time, the overhead (time outside trials; the verdict counts as
overhead), and whether the winner at least matches each rival's gain. The last lines repeat a search by one seed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from measuring import Latency, interleaved_latency
from models import Evaluation
from search_cases import QUESTIONS, Question, choosing_of, data_of
from search_cases.answers import Answer, answered, evaluated, rival, slug
from search_cases.peers import MAKERS, NotRunError, made
from tables import Table, measurement, write_json

from pumice.measure import interleaved_latency as calls_in_turn
from pumice.registry import registry
from pumice.search import Found, search
from pumice.strategy import Runtime

FLOAT, WINNER = "float", "pumice, search"
MINUTES, QUICK_MINUTES = 20.0, 0.5
SECONDS, QUICK_SECONDS = 8.0, 1.0
EQUAL = 0.95
"""Gains within 5% are a tie: so much may two timings of one file differ."""
REPEATED = {"goal": "size", "trials": 12, "budget": 0.0, "max_drop": 0.01}
"""A search whose course no clock has a part in."""
COLUMNS = {
    "question": 28, "variant": 22, "metric [95%]": 32, "lost": -7, "kB": -6, "ms ort": -8, "ms native": -9, "gain": -6,
    "note": 8,
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Row:
    """One file, or why there is none."""

    variant: str
    path: Path | None = None
    evaluation: Evaluation | None = None
    lost: float = float("nan")
    ort: Latency | None = None
    native: float | None = None
    """Milliseconds in our runtime; None where it does not take the file."""
    note: str = ""

    @property
    def kilobytes(self) -> float:
        return float("nan") if self.path is None else self.path.stat().st_size / 1000


def main() -> int:
    """Print the table; 1 if a question failed."""
    arguments = _parser().parse_args()
    unknown = [name for name in arguments.only or () if name not in QUESTIONS]
    if unknown:
        print(f"error: no question {unknown[0]!r}: there are {'; '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
    table, record = Table(COLUMNS), {"cases": [], "details": [], "failures": []}
    for name in arguments.only or QUESTIONS:
        try:
            _answer(QUESTIONS[name], minutes, arguments, table, record)
        except Exception as error:  # one question that cannot be asked here must not cost the others
            table.row([name, "", "", "", "", "", "", "", f"{type(error).__name__}: {error}"])
            record["failures"].append({"case": name, "error": f"{type(error).__name__}: {error}"})
        if arguments.json:
            write_json(arguments.json, record)
    if not arguments.only:
        record["cases"].append(_repeated())
        if arguments.json:
            write_json(arguments.json, record)
    return 1 if record["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The search against defaults, onnxruntime, NNCF and Olive.")
    parser.add_argument("--quick", action="store_true", help="half a minute a question, few data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON, question by question")
    parser.add_argument("--only", type=_names, metavar="ID;ID", help="these questions only")
    parser.add_argument("--minutes", type=float, help="for each search")
    parser.add_argument("--without", type=_names, default=[], metavar="PEER;PEER", help="rivals to leave out")
    parser.add_argument("--workers", type=int, default=1, help="recipes that a search tries at once")
    kept = "what is found and made lies there, and what lies there is neither searched nor made again"
    parser.add_argument("--answers", type=Path, metavar="FOLDER", help=kept)
    resumable = "keep the trials there: a search that was stopped goes on"
    parser.add_argument("--studies", type=Path, metavar="FOLDER", help=resumable)
    return parser


def _names(text: str) -> list[str]:
    return text.split(";")


# --- one question -----------------------------------------------------------------------------------------------------


def _answer(
    question: Question, minutes: float, arguments: argparse.Namespace, table: Table, record: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.answers or Path(temporary)
        _tell(f"{question.id}: search")
        answer = answered(question, folder, lambda: _searched(question, minutes, arguments, Path(temporary)))
        files = [Row(variant=FLOAT, path=question.case.path), Row(variant=WINNER, path=answer.path, note=answer.note)]
        for name in MAKERS:
            if name not in arguments.without:
                _tell(f"{question.id}: {name}")
                files.append(_made(name, question, arguments.quick, folder))
        _tell(f"{question.id}: judging")
        rows = _timed([_judged(question, row, folder) for row in files], question, arguments.quick)
        _show(question, answer, rows, table, record)


def _searched(question: Question, minutes: float, arguments: argparse.Namespace, temporary: Path) -> tuple[Found, Path]:
    """What a search found, and the folder of its study. Its data lie in files, so that all workers have them."""
    study = (arguments.studies or temporary) / slug(question.id)
    parts = {"data": data_of(question.id, arguments.quick), "test": choosing_of(question.id, arguments.quick)}
    files = {name: temporary / f"{name}.npz" for name in parts}
    for name, path in files.items():
        np.savez(path, **parts[name])
    limits = {**question.limits, "budget": minutes, "study": str(study), "workers": arguments.workers}
    return search(question.case.path, files["data"], limits, test=files["test"]), study


def _made(name: str, question: Question, quick: bool, folder: Path) -> Row:
    def make() -> Path:
        return made(MAKERS[name], question, data_of(question.id, quick), choosing_of(question.id, quick), work)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        try:
            return Row(variant=name, path=rival(name, question, folder, make))
        except NotRunError as error:
            return Row(variant=name, note=f"no file: {error}")


def _judged(question: Question, row: Row, folder: Path) -> Row:
    if row.path is None:
        return row
    original = folder / question.model / "float.npz"
    against = question.judged(evaluated(question, question.case.path, original))
    if row.variant == FLOAT:
        return attrs.evolve(row, evaluation=against, lost=0.0)
    try:
        evaluation = question.judged(evaluated(question, row.path, row.path.with_suffix(".npz")))
    except Exception as error:  # a peer's file may be one that onnxruntime refuses
        return attrs.evolve(row, path=None, note=f"{type(error).__name__}: {error}")
    labelled = "labels" in data_of(question.id, True)
    lost = against.value - evaluation.value if labelled else 1.0 - question.case.agreement(evaluation, against)
    return attrs.evolve(row, evaluation=evaluation, lost=lost)


def _timed(rows: Sequence[Row], question: Question, quick: bool) -> list[Row]:
    seconds = QUICK_SECONDS if quick else SECONDS
    files = {row.variant: row.path for row in rows if row.path is not None}
    ort = interleaved_latency(files, question.case.feed, seconds * len(files) / 4)
    native = _native(files, dict(question.case.feed), seconds * len(files) / 8)
    return [attrs.evolve(row, ort=ort.get(row.variant), native=native.get(row.variant)) for row in rows]


def _native(files: Mapping[str, Path], feed: dict[str, np.ndarray], seconds: float) -> dict[str, float]:
    """Milliseconds in our own runtime, of the files that it takes."""
    runtime = registry().make(Runtime, "native")
    if runtime.available():
        return {}
    calls = {}
    for name, path in files.items():
        try:
            session = runtime.open(path, threads=1)
            session.run(feed)
        except Exception as error:  # whatever it says, there is no time to show
            _tell(f"native does not take {name}: {error}")
        else:
            calls[name] = lambda session=session: session.run(feed)
    return {name: latency.median for name, latency in calls_in_turn(calls, seconds=seconds).items()} if calls else {}


# --- showing ----------------------------------------------------------------------------------------------------------


def _show(question: Question, answer: Answer, rows: Sequence[Row], table: Table, record: dict[str, Any]) -> None:
    gains = {row.variant: _gain(row, rows[0], question.limits) for row in rows}
    for row in rows:
        table.row(_cells(question.id, row, gains[row.variant]))
    rivals = {name: gain for name, gain in gains.items() if name not in (WINNER, FLOAT) and gain}
    table.row([question.id, "verdict", *[""] * 6, _verdict(gains[WINNER], rivals)])
    told = ", ".join(f"{gain:.1f} after {seconds:.0f} s" for seconds, gain in answer.curve)
    tally = f"{answer.tally}; overhead {answer.overhead:.1%}; best so far {told or 'none'}"
    table.row([question.id, "course", *[""] * 6, tally])
    record["cases"].extend(_measurements(question, answer.overhead, rows, gains))
    record["details"].append({"case": question.id, "curve": answer.curve, "search": answer.details})


def _gain(row: Row, floating: Row, limits: Mapping[str, Any]) -> float | None:
    """Times faster times times smaller; None where a limit is broken."""
    smaller = floating.kilobytes / row.kilobytes
    if row.ort is None or floating.ort is None or row.lost > limits["max_drop"] or smaller < limits.get("size", 0.0):
        return None
    return floating.ort.median / row.ort.median * smaller


def _verdict(ours: float | None, rivals: Mapping[str, float]) -> str:
    def against(rival: float) -> str:
        if ours is None or ours < EQUAL * rival:
            return "LESS"
        return "equal" if ours * EQUAL < rival else "more"

    said = [
        f"{against(gain)} than {name} ({gain:.1f})".replace("equal than", "equal to") for name, gain in rivals.items()
    ]
    return "; ".join(said) or "no rival within the limit"


def _cells(name: str, row: Row, gain: float | None) -> list[str]:
    if row.evaluation is None:
        return [name, row.variant, *[""] * 6, row.note]
    low, high = row.evaluation.interval()
    return [
        name,
        row.variant,
        f"{row.evaluation.metric} {row.evaluation.value:.4f} [{low:.4f}, {high:.4f}]",
        f"{row.lost:.4f}",
        f"{row.kilobytes:.0f}",
        f"{row.ort.median:.3f}" if row.ort else "",
        f"{row.native:.3f}" if row.native else "",
        f"{gain:.1f}" if gain else "-",
        row.note,
    ]


def _measurements(
    question: Question, overhead: float, rows: Sequence[Row], gains: Mapping[str, float | None]
) -> Iterator[dict[str, Any]]:
    ours, others = rows[1], [row for row in rows if row.evaluation is not None and row is not rows[1]]
    if ours.evaluation is not None:
        low, high = ours.evaluation.interval()
        half = (high - low) / 2 / abs(ours.evaluation.value or 1.0)
        for metric, of, spread, higher in (
            (ours.evaluation.metric, lambda row: row.evaluation.value, half, ours.evaluation.higher_is_better),
            ("file kB", lambda row: row.kilobytes, 0.0, False),
            (
                "latency ms, onnxruntime",
                lambda row: row.ort and row.ort.median,
                ours.ort.spread if ours.ort else 0.0,
                False,
            ),
            ("latency ms, native", lambda row: row.native, 0.0, False),
            ("gain within the limit", lambda row: gains[row.variant], 0.0, True),
        ):
            peers = {row.variant: of(row) for row in others if of(row)}
            if of(ours):
                yield measurement(question.id, metric, of(ours), peers, spread=spread, higher_is_better=higher)
    yield measurement(question.id, "overhead", overhead, {}, spread=0.0, higher_is_better=False)


def _repeated() -> dict[str, Any]:
    """Two searches with one seed."""
    question = QUESTIONS["fashion_resnet"]
    data, test = data_of(question.id, True), choosing_of(question.id, True)
    first, second = (search(question.case.path, data, REPEATED, test=test) for _ in range(2))
    same = first.recipe == second.recipe and [t.recipe for t in first.trials] == [t.recipe for t in second.trials]
    print(f"\nTwo searches with one seed: {'the same course and winner' if same else 'NOT the same'} ({first.tally})")
    return measurement("one seed twice", "same winner", float(same), {}, spread=0.0, higher_is_better=True)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
