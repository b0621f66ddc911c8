"""A CPU without VNNI: the accuracy that the simulation predicts there, against onnxruntime run on one.

`qemu-x86_64 -cpu Haswell` executes the instructions of such a CPU, saturating pair sums included, so that onnxruntime
picks its AVX2 kernels. A model quantized for `ort-cpu` loses there; one for `ort-cpu-no-vnni` does not.
"""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import case, onnxruntime_run
from runs import Record, Run
from tables import Table

from .attempts import compressed, file_of, tell

PART = "pairing"
CASES = ("digits_cnn", "fashion_mobile", "ocr_cls")
QUICK = ("digits_cnn",)
EMULATOR = "qemu-x86_64"
TARGETS = ("ort-cpu", "ort-cpu-no-vnni")
COLUMNS = {
    "case": 14, "target": 16, "with VNNI": -9, "predicted without": -17, "onnxruntime on Haswell": -22,
    "answers alike": -13,
}  # fmt: skip
SERVE = """
import pickle, sys, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
while True:
    feed = pickle.load(sys.stdin.buffer)
    pickle.dump(dict(zip(names, session.run(None, feed))), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def runs(cases: Sequence[str]) -> list[Run]:
    """Of all cases and targets; none where there is no emulator."""
    if shutil.which(EMULATOR) is None:
        tell(f"{EMULATOR} is not installed: nothing to compare the prediction with")
        return []
    return [
        Run(name=f"{PART}/{case_id}/{target}", function=predicted, arguments=(case_id, target))
        for case_id in cases
        for target in TARGETS
    ]


def predicted(case_id: str, target: str, folder: Path) -> Record:
    """The accuracy here, as the simulation predicts it there, and there."""
    found, path = case(case_id), file_of(folder, case_id, f"pairing {target}")
    compressed(found, {"name": "int8"}, path, target=target)
    here, simulated = found.evaluate(onnxruntime_run(path)), found.evaluate(_simulated(path))
    there = _on_haswell(path, found.evaluate)
    alike = found.agreement(simulated, there)
    return {"vnni": here.value, "predicted": simulated.value, "haswell": there.value, "answers_alike": alike}


def shown(cases: Sequence[str], records: Mapping[str, Record]) -> tuple[bool, list[Record]]:
    """Print the table; whether a prediction was wrong, and what there is."""
    table, found = Table(COLUMNS), []
    for case_id in cases:
        for target in TARGETS:
            record = records.get(f"{PART}/{case_id}/{target}")
            if record is None:
                continue
            figures = [f"{record[what]:.4f}" for what in ("vnni", "predicted", "haswell", "answers_alike")]
            table.row([case_id, target, *figures])
            found.append({"case": case_id, "variant": f"without VNNI, {target}", **record})
    return any(record["predicted"] != record["haswell"] for record in found), found


def _simulated(path: Path) -> Callable[[Any], dict[str, np.ndarray]]:
    from pumice.model import load
    from pumice.quantize.simulation import simulate

    plan = simulate(load(path), pair_saturation=True)
    return lambda feed: plan.run(dict(feed))


def _on_haswell(path: Path, evaluate: Callable[[Any], Any]) -> Any:
    command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-c", SERVE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def outputs(feed: Any) -> dict[str, np.ndarray]:
            pickle.dump(dict(feed), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)

        found = evaluate(outputs)
        process.kill()
    return found
