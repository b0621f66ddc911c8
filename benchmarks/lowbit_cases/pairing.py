"""A CPU without VNNI: the accuracy that the simulation predicts there, against onnxruntime run on one.

`qemu-x86_64 -cpu Haswell` executes the instructions of such a CPU, saturating pair sums included, so that onnxruntime
picks its AVX2 kernels. A model quantized for `ort-cpu` loses there; one for `ort-cpu-no-vnni` does not.
"""

import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import Case, onnxruntime_run, reference
from tables import Table

from .attempts import tell
from .techniques import compressor

CASES = ("digits_cnn", "fashion_mobile", "ocr_cls")
QUICK = ("digits_cnn",)
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


def run(chosen: Sequence[Case], keep: Callable[..., None]) -> bool:
    """Measure; `keep` is told a case's entries and details. Whether the prediction was wrong anywhere."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        tell("qemu-x86_64 is not installed: nothing to compare the prediction with")
        return False
    table, wrong = Table(COLUMNS), False
    for found in chosen:
        reference(found)
        for target in TARGETS:
            tell(f"{found.id}: {target}")
            with tempfile.TemporaryDirectory() as work:
                path = Path(work) / "model.onnx"
                feeds = [dict(feed) for feed in found.calibration()]
                compressor(found, {"name": "int8"}, feeds, target=target)(path)
                vnni, predicted = found.evaluate(onnxruntime_run(path)), found.evaluate(_simulated(path))
                there = _on_haswell(emulator, path, found.evaluate)
            alike = found.agreement(predicted, there)
            wrong |= predicted.value != there.value
            figures = [f"{evaluation.value:.4f}" for evaluation in (vnni, predicted, there)]
            table.row([found.id, target, *figures, f"{alike:.4f}"])
            keep([], [{"case": found.id, "variant": f"without VNNI, {target}", "vnni": vnni.value,
                       "predicted": predicted.value, "haswell": there.value, "answers_alike": alike}])  # fmt: skip
    return wrong


def _simulated(path: Path) -> Callable[[Any], dict[str, np.ndarray]]:
    from pumice.model import load
    from pumice.quantize.simulation import simulate

    plan = simulate(load(path), pair_saturation=True)
    return lambda feed: plan.run(dict(feed))


def _on_haswell(emulator: str, path: Path, evaluate: Callable[[Any], Any]) -> Any:
    command = [emulator, "-cpu", "Haswell", sys.executable, "-c", SERVE, str(path)]
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
