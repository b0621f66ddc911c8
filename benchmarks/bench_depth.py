"""Errors of quantization add up with depth: 50 layers of inverted residuals, careless integers, the repair by training.

    python benchmarks/bench_depth.py [--quick] [--json FILE] [--model FILE] [--keep FOLDER] [--pictures 60000]

The network learns Fashion-MNIST (or is read from a file). `accuracy` is that of the exported files on the official test
pictures, in onnxruntime: careless post-training quantization has one scale a tensor from the extremes that calibration
saw, and nothing else; `qat` trains the same integers, per channel. `growth` compares what every layer writes in float
and in integers: if every layer added an independent error of the same relative size, the relative error behind n layers
would be proportional to the square root of n. The exponent is the slope of a straight line through the logarithms.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import fashion
import numpy as np
import onnx_ir as ir
from models import networks, pictures
from tables import Table, measurement, write_json

from pumice.data import open_dataset
from pumice.diagnose.layers import layer_errors
from pumice.model import clone, load, nodes, save, simplify
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.registry import registry
from pumice.strategy import Runtime
from pumice_quant_qat import Qat

TRAINING = {"epochs": 3, "batch": 128, "lr": 4e-3, "augment": ("flip",)}
CARELESS = Scheme(modes=("static",), equalize=False, compensate=False, correct_bias=False)
COMPARED = 64
"""Pictures."""


def deep(folder: Path, *, quick: bool) -> ir.Model:
    """The network, trained."""
    path = networks.bottlenecks(folder / "deep.onnx", blocks=(2, 2, 2) if quick else (5, 6, 5))
    return fashion.train(path, TRAINING | ({"epochs": 1} if quick else {}), 3000 if quick else None).model


def careless(model: ir.Model, bits: int) -> ir.Model:
    """One scale a tensor, from the extremes."""
    context = fashion.quantization(model)
    target = attrs.evolve(context.target, weight_bits=bits, per_channel=False, channel_scales="none")
    return quantize_layers(model, CARELESS, attrs.evolve(context, target=target))


# --- growth -----------------------------------------------------------------------------------------------------------


def errors(model: ir.Model, quantized: ir.Model) -> np.ndarray:
    """The relative error of what every layer writes, first to last."""
    (x,) = (str(value.name) for value in model.graph.inputs)
    seen = open_dataset({x: pictures.fashion().test[:COMPARED]}, model)
    found = layer_errors(model, quantized, seen, registry().make(Runtime, "ort"), samples=COMPARED)
    decibels = {error.node: error.output_sqnr_db for error in found}
    return np.array([10 ** (-decibels[node.name] / 20) for node in nodes(model) if node.name in decibels])


def exponent(relative: np.ndarray) -> float:
    """p of the power of the number of layers that comes nearest."""
    return float(np.polyfit(np.log(np.arange(1, len(relative) + 1)), np.log(relative), 1)[0])


def growth(model: ir.Model, quantized: ir.Model, bits: int) -> dict[str, Any]:
    relative = errors(model, quantized)
    return {
        **measurement(f"careless INT{bits}, growth of the error", "growth", exponent(relative), {},
                      spread=0.0, higher_is_better=False),
        "errors": [float(each) for each in relative],
    }  # fmt: skip


# --- the script -------------------------------------------------------------------------------------------------------


def rows(model: ir.Model, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    first = fashion.judged("float", model, folder, None)
    whole = first["ours"]
    yield first
    folded = clone(model)
    simplify(folded)
    for bits in (8, 4):
        quantized = careless(folded, bits)
        yield fashion.judged(f"careless INT{bits} weights, INT8 activations", quantized, folder, whole)
        yield growth(folded, quantized, bits)
    trained = Qat(weight_bits=4, epochs=1, batch=128, lr=5e-4).quantize(folded, fashion.quantization(folded, count))
    yield fashion.judged("qat, INT4 weights, INT8 activations", trained, folder, whole)


def shown(row: dict[str, Any]) -> list[str]:
    lost = "" if not row["peers"] else f"{100 * (row['peers']['float'] - row['ours']):.2f} points"
    along = " ".join(f"{each:.3f}" for each in row.get("errors", ())[::8])
    return [row["case"], row["metric"], f"{row['ours']:.4f}", lost, along]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a network of 20 layers and little training")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--model", type=Path, help="a trained network, instead of training one")
    parser.add_argument("--keep", type=Path, help="folder for the trained network")
    parser.add_argument("--pictures", type=int, default=60_000, help="seen once by quantization-aware training")
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        model = load(options.model) if options.model else deep(Path(folder), quick=options.quick)
        if options.keep:
            save(model, options.keep / "fashion_deep.onnx")
        table = Table({"case": 44, "metric": 8, "ours": -7, "lost": -12, "error of every eighth layer": 32})
        for row in rows(model, Path(folder), 3000 if options.quick else options.pictures):
            table.row(shown(row))
            cases.append(row)
    if options.json:
        write_json(options.json, {"cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
