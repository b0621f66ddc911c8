"""Weights of few bits, recurrent networks in integers, mixed precision, and CPUs without VNNI.

    python benchmarks/bench_lowbit.py [--quick] [--json FILE] [--only ID,ID] [--parts NAME,NAME] [--variants NAME,NAME]
                                      [--limit SECONDS] [--records FOLDER] [--seconds N] [--page FILE]

Five tables, each a part:

    techniques  every technique on every model
    recurrent   ranges found at every step, against fixed ones and onnxruntime's own
    choice      mixed precision against all layers in INT8, and against every choice there is
    pairing     the accuracy predicted for a CPU without VNNI, against one (needs qemu-x86_64)
    clustering  k-means alone on a layer of 4096 by 4096

A row has the metric with its 95% interval, what it lost in points (percent of itself where it is no share), the
agreement with the float model, the bytes of the layers' weights (recurrence and embeddings among them; with the scales,
tables and shapes they are stored with) and how many times fewer these are, the bytes of the whole file, and the latency
on one thread in onnxruntime and in the runtime `native` (median and quartiles, all variants of a case taking turns).

Every attempt is a run of its own on one core (`runs.py`): it leaves its record in the folder `--records` as soon as it
is done and is not repeated where the record is there. `--seconds` ends a call early; the tables have what there is, and
`--seconds 0` only prints. `--limit` stops an attempt that takes longer. `--page` puts the tables into a Markdown page
as well, each between the comments `<!-- PART -->` and `<!-- /PART -->`.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from lowbit_cases import choice, clustering, pairing, recurrent, techniques
from lowbit_cases.attempts import measurements
from models import CASES
from runs import Record, Run, carried_out
from tables import write_json

PARTS = ("recurrent", "techniques", "choice", "pairing", "clustering")
QUICK = ("digits_cnn", "fashion_resnet", "fashion_lstm")
SECONDS, QUICK_SECONDS = 1.0, 0.2
LIMIT = 900.0


def main() -> int:
    """Print the tables; 1 if a prediction was wrong or an attempt left no record."""
    arguments = _parser().parse_args()
    runs = list({run.name: run for part in arguments.parts for run in _runs(part, arguments)}.values())
    with tempfile.TemporaryDirectory() as work:
        records = carried_out(runs, arguments.records or Path(work), arguments.seconds)
    wrong, entries, details = False, [], []
    for part in arguments.parts:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            mistaken, more, known = _shown(part, arguments, records)
        print(f"\n{part}\n\n{text.getvalue()}", end="")
        if arguments.page:
            _enter(arguments.page, part, text.getvalue())
        wrong, entries, details = wrong or mistaken, entries + more, details + known
    if arguments.json:
        write_json(arguments.json, {"cases": entries, "details": details})
    return int(wrong or len(records) < len(runs))


def _runs(part: str, arguments: argparse.Namespace) -> list[Run]:
    cases, limit = _cases(part, arguments), arguments.limit
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    match part:
        case "techniques":
            return techniques.runs(cases, _variants(arguments), limit, seconds)
        case "recurrent":
            return recurrent.runs(cases, limit, seconds)
        case "choice":
            every = not arguments.only or choice.SMALL in arguments.only
            return choice.runs(cases, limit, exhaustive=every)
        case "pairing":
            return pairing.runs(cases)
        case _:
            return clustering.runs()


def _shown(
    part: str, arguments: argparse.Namespace, records: Mapping[str, Record]
) -> tuple[bool, list[Record], list[Record]]:
    """Whether a prediction was wrong, and what the JSON has of a part."""
    cases = _cases(part, arguments)
    match part:
        case "techniques" | "recurrent":
            quantized = part == "techniques"
            rows = (
                techniques.shown(cases, _variants(arguments), records) if quantized else recurrent.shown(cases, records)
            )
            return False, measurements(rows), [attrs.asdict(row) for row in rows]
        case "choice":
            return False, [], choice.shown(cases, records)
        case "pairing":
            wrong, found = pairing.shown(cases, records)
            return wrong, [], found
        case _:
            return False, [], clustering.shown(records)


def _enter(page: Path, part: str, text: str) -> None:
    """Put the tables of a part where the page has a place for them."""
    between = re.compile(rf"(<!-- {part} -->\n).*(<!-- /{part} -->)", re.DOTALL)
    narrow = re.sub(r"(?<=\|) +| +(?=\|)", " ", text)
    page.write_text(between.sub(lambda found: f"{found[1]}\n{narrow}\n{found[2]}", page.read_text()))


def _cases(part: str, arguments: argparse.Namespace) -> list[str]:
    """Those of a part; of these, the ones asked for."""
    whole, quick = {
        "techniques": (CASES, QUICK), "recurrent": (recurrent.CASES, recurrent.QUICK),
        "choice": (choice.CASES, choice.QUICK), "pairing": (pairing.CASES, pairing.QUICK), "clustering": ((), ()),
    }[part]  # fmt: skip
    return [name for name in (quick if arguments.quick else whole) if not arguments.only or name in arguments.only]


def _variants(arguments: argparse.Namespace) -> Sequence[str]:
    return arguments.variants or (techniques.QUICK if arguments.quick else tuple(techniques.VARIANTS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Weights of few bits: accuracy, size and speed.")

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--quick", action="store_true", help="small committed models, few variants, short timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--only", type=names, metavar="ID,ID", help="these cases only")
    parser.add_argument("--parts", type=names, default=PARTS, metavar="NAME,NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--variants", type=names, metavar="NAME,NAME", help="of techniques, these only")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that one attempt may take")
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="where runs leave what they found")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page to put the tables into as well")
    parser.add_argument("--seconds", type=float, help="stop after this long; print what there is")
    return parser


if __name__ == "__main__":
    sys.exit(main())
