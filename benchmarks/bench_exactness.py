"""Quantized models, integer by integer: the simulator and the runtime `native`, or another, against onnxruntime.

    python benchmarks/bench_exactness.py [--quick] [--json FILE] [--only ID,ID] [--samples 8] [--runtime cuda]
    python benchmarks/bench_exactness.py --packed FOLDER

Each model is compressed with nothing but defaults, or was by `bench_cuda_devices.py --pack FOLDER`, which leaves its
samples there too. Every tensor of integers in the file that comes out is then computed by onnxruntime and by the
simulator, layer by layer (`pumice.quantize.simulation`), from the same calibration samples:

  equal      integer tensors that agree bit for bit, of all there are
  steps      the largest difference between two integers
  share      the largest share of a tensor's elements that differ
  because    operators on real numbers before those tensors, and how far from half-way between two integers the numbers
             lay that were rounded to different sides; `arithmetic` would mean that integers alone disagree
  native     the largest difference of an output of that runtime in exact mode, over that output's largest value
  ort        the same of onnxruntime to itself, where nothing but last bits differ (`yardstick`): what is no more than
             this is the network's doing

Exit code 1 says that a difference has no explanation.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import variants
from models import CASES, Feed, case, onnxruntime_run
from tables import Table, measurement, write_json
from yardstick import apart, onnxruntime_itself

import pumice
from pumice.errors import PumiceError
from pumice.measure.runtimes import pick_runtime
from pumice.model import load
from pumice.quantize.simulation import LayerDifference, compare_integers
from pumice.strategy import Runtime

QUICK = ("digits_cnn", "fashion_resnet", "fashion_mobile")
COLUMNS = {"case": 14, "equal": -9, "steps": -5, "share": -9, "because": 60}


def main() -> int:
    """Print the table; 1 if some difference has no explanation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small models only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON, case by case")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ID,ID", help="these cases only")
    parser.add_argument("--samples", type=int, default=8, help="calibration samples compared")
    parser.add_argument("--runtime", default="native", help="whose outputs are compared")
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="models and samples that were written there")
    options = parser.parse_args()
    try:
        runtime = pick_runtime(options.runtime)
    except PumiceError as error:
        parser.error(str(error))
    table, explained, record = Table({**COLUMNS, runtime.name: -8, "ort": -8}), True, {"cases": []}
    for name, path, feeds in files(options):
        differences, ours = compared(path, feeds, runtime)
        itself = onnxruntime_itself(path, feeds)
        explained &= all(difference.explained for difference in differences)
        table.row(shown(name, differences, ours, itself))
        record["cases"] += figures(name, differences, {runtime.name: ours, "onnxruntime itself": itself})
        if options.json:
            write_json(options.json, record)
    return 0 if explained else 1


def files(options: argparse.Namespace) -> Iterator[tuple[str, Path, list[Feed]]]:
    """The quantized models, one after the other, and what they are fed."""
    names = options.only or (QUICK if options.quick else CASES)
    if options.packed:
        for name, kind, path, feeds in variants.read(options.packed, names):
            if kind == "int8":
                yield name, path, list(feeds.samples[: options.samples])
        return
    for name in names:
        found = case(name)
        data = [dict(feed) for feed in found.calibration()]
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            pumice.compress(found.path, data=data, measure=False).save(target)
            yield name, target, list(itertools.islice(data, options.samples))


def compared(model: Path, feeds: Sequence[Feed], runtime: Runtime) -> tuple[list[LayerDifference], float]:
    """The differences of every integer tensor, and the largest of an output of the runtime, relative."""
    differences = compare_integers(load(model), feeds, pick_runtime("ort"))
    theirs, ours = onnxruntime_run(model), runtime.open(model)
    return differences, max(apart(ours.run(feed), theirs(feed)) for feed in feeds)


def shown(name: str, differences: Sequence[LayerDifference], ours: float, itself: float) -> list[str]:
    """The cells of one row."""
    unequal = [difference for difference in differences if difference.steps]
    equal = f"{len(differences) - len(unequal)}/{len(differences)}"
    if not unequal:
        return [name, equal, "0", "", "", f"{ours:.0e}", f"{itself:.0e}"]
    steps, share = max(found.steps for found in unequal), max(found.share for found in unequal)
    return [name, equal, str(steps), f"{share:.4%}", because(unequal), f"{ours:.0e}", f"{itself:.0e}"]


def because(unequal: Sequence[LayerDifference]) -> str:
    """What stands between the integers that differ and the integers before them."""
    if any(not found.float_ops for found in unequal):
        return "arithmetic"
    operators = sorted({operator for found in unequal for operator in found.float_ops})
    return f"{', '.join(operators)}; {max(found.from_tie for found in unequal):.6f} steps from half-way"


def figures(name: str, differences: Sequence[LayerDifference], off: Mapping[str, float]) -> list[dict[str, Any]]:
    """The row for machines."""
    of = {
        "integer tensors that differ": sum(found.steps > 0 for found in differences),
        "largest difference in steps": max((found.steps for found in differences), default=0),
        "largest share that differs": max((found.share for found in differences), default=0.0),
        **{f"{runtime}, largest relative difference": value for runtime, value in off.items()},
    }
    return [measurement(name, what, value, {}, spread=0.0, higher_is_better=False) for what, value in of.items()]


if __name__ == "__main__":
    sys.exit(main())
