"""Quantization-aware training: what it recovers of the accuracy that post-training quantization loses.

    python benchmarks/bench_qat.py [--quick] [--json FILE] [--only fashion_resnet,fashion_mobile] [--epochs 3]

Weights of 4 bits per channel, activations of 8. Both sides have the same integers in the same places; `ptq` rounds the
weights to the nearest of them, `qat` trains them on the 60,000 training pictures. Accuracy is that of the exported
files on the official test pictures, in onnxruntime; `recovered` is the share of the loss that training brings back.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import fashion
from models import pictures
from tables import Table, write_json

from pumice.model import load, simplify
from pumice_quant_qat import Qat

NETWORKS = ("fashion_resnet", "fashion_mobile")


def rows(name: str, epochs: int, folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    model = load(pictures.TRAINED / f"{name}.onnx")
    simplify(model)
    first = fashion.judged(f"{name}, float", model, folder, None)
    whole = first["ours"]
    yield first
    qat = Qat(weight_bits=4, epochs=epochs, batch=128)
    context = fashion.quantization(model, 3000 if quick else None)
    untrained = qat.quantize(model, attrs.evolve(context, draft=True))
    second = fashion.judged(f"{name}, ptq", untrained, folder, whole)
    yield second
    third = fashion.judged(f"{name}, qat", qat.quantize(model, context), folder, whole)
    lost = whole - second["ours"]
    yield {**third, "recovered": (third["ours"] - second["ours"]) / lost if lost > 0 else None}


def shown(row: dict[str, Any]) -> list[str]:
    lost = "" if not row["peers"] else f"{100 * (row['peers']['float'] - row['ours']):.2f} points"
    share = row.get("recovered")
    return [row["case"], f"{row['ours']:.4f}", lost, "" if share is None else f"{share:.0%}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train on 3,000 pictures")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, separated by commas")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    cases = []
    table = Table({"case": 24, "accuracy": -8, "lost": -12, "recovered": -9})
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(","):
            for row in rows(name, options.epochs, Path(folder), quick=options.quick):
                table.row(shown(row))
                cases.append(row)
    if options.json:
        write_json(options.json, {"cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
