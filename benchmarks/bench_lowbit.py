"""Weights of few bits, recurrent networks in integers, mixed precision, and CPUs without VNNI.

    python benchmarks/bench_lowbit.py [--quick] [--json FILE] [--only ID,ID] [--parts NAME,NAME] [--variants NAME,NAME]
                                      [--limit SECONDS]

Five tables, each a part:

    techniques  every technique on every model
    recurrent   ranges found at every step, against fixed ones and onnxruntime's own
    choice      mixed precision against all layers in INT8, and against every choice there is
    pairing     the accuracy predicted for a CPU without VNNI, against one (needs qemu-x86_64)
    clustering  k-means alone on a layer of 4096 by 4096

A row has the metric with its 95% interval, the agreement with the float model, the bytes of all initializers, how many
times fewer bytes the layers' weights take, and the latency on one thread in onnxruntime and in the runtime `native`
(median and quartiles, all variants of a case taking turns). `points` is what the metric lost in points (percent of
itself where it is no share). `--limit` stops an attempt that takes longer. The JSON is written anew after every case.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lowbit_cases import choice, clustering, pairing, recurrent, techniques
from models import CASES, Case, StoreError, case
from tables import write_json

PARTS = ("techniques", "recurrent", "choice", "pairing", "clustering")
QUICK = ("digits_cnn", "fashion_resnet", "fashion_lstm")
SECONDS, QUICK_SECONDS = 1.0, 0.2
LIMIT = 900.0


def main() -> int:
    """Print the tables; 1 if a variant failed or a prediction was wrong, 2 if a case cannot be had."""
    arguments = _parser().parse_args()
    record: dict[str, Any] = {"cases": [], "details": []}

    def keep(entries: list[dict[str, Any]], details: list[dict[str, Any]]) -> None:
        known = {(entry["case"], entry["variant"]) for entry in details if "noise" not in entry}
        record["details"] = [d for d in record["details"] if (d["case"], d["variant"]) not in known] + details
        record["cases"] += entries
        if arguments.json:
            write_json(arguments.json, record)

    try:
        failed = [_part(name, arguments, keep) for name in arguments.parts or PARTS]
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(failed))


def _part(name: str, arguments: argparse.Namespace, keep: Any) -> bool:
    quick, limit = arguments.quick, arguments.limit
    seconds = QUICK_SECONDS if quick else SECONDS
    print(f"\n{name}\n")
    if name == "techniques":
        variants = arguments.variants or (techniques.QUICK if quick else tuple(techniques.VARIANTS))
        return techniques.run(_cases(arguments, QUICK if quick else CASES), variants, limit, seconds, keep)
    if name == "recurrent":
        return recurrent.run(_cases(arguments, recurrent.QUICK if quick else recurrent.CASES), limit, seconds, keep)
    if name == "choice":
        failed = choice.run(_cases(arguments, choice.QUICK if quick else choice.CASES), limit, keep)
        if not arguments.only or choice.SMALL in arguments.only:
            choice.exhaustive(keep)
        return failed
    if name == "pairing":
        return pairing.run(_cases(arguments, pairing.QUICK if quick else pairing.CASES), keep)
    clustering.run(keep)
    return False


def _cases(arguments: argparse.Namespace, usual: Any) -> list[Case]:
    """Those of a part; of these, the ones asked for."""
    return [case(name) for name in usual if not arguments.only or name in arguments.only]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Weights of few bits: accuracy, size and speed.")

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--quick", action="store_true", help="small committed models, few variants, short timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON, case by case")
    parser.add_argument("--only", type=names, metavar="ID,ID", help="these cases only")
    parser.add_argument("--parts", type=names, metavar="NAME,NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--variants", type=names, metavar="NAME,NAME", help="of techniques, these only")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that one attempt may take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
