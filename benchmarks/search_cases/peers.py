"""What others make of a question: our defaults without a search, onnxruntime's, NNCF's accuracy control, Olive.

Each is a function of a question and a folder that holds its data; it returns a file, or the reason why there is none.
"""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import onnxruntime_run
from peers import PER_TENSOR, STOCK, Variant, quantized
from peers.environment import PeerError, interpreter

from pumice.data import open_dataset
from pumice.measure import choose_metrics

from . import Data, Question

NNCF_PACKAGES = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1")
OLIVE_PACKAGES = ("olive-ai==0.13.0", "onnx==1.23.2", "onnxruntime==1.31.1", "optuna==5.0.0", "requests==2.34.2")
NNCF, OLIVE = (Path(__file__).with_name(f"{name}_peer.py") for name in ("nncf", "olive"))
CALIBRATION, JUDGED, SECONDS = 256, 2000, 1200
OLIVE_JUDGED, OLIVE_SECONDS = 1000, 300
"""Its evaluation takes many times as long a sample; a search that has begun a recipe goes over its time."""

Maker = Callable[[Question, Data, Data, Path], Path]
"""A question, its data, what recipes are chosen by, and a folder to work in -> a file."""


class NotRunError(RuntimeError):
    """A peer that could not be run; the text is the reason."""


def defaults(question: Question, data: Data, choosing: Data, folder: Path) -> Path:
    """`pumice.compress` with nothing but its defaults."""
    import pumice

    path = folder / "defaults.onnx"
    pumice.compress(question.case.path, data=data, measure=False).save(path)
    return path


def stock(*variants: Variant) -> Maker:
    """onnxruntime's own quantization: the first of the variants that does not end with an error."""

    def make(question: Question, data: Data, choosing: Data, folder: Path) -> Path:
        feeds = [_row(data, at) for at in range(_calibration(data))]
        for variant in variants:
            found = quantized(variant, question.case.path, feeds)
            if not found.error:
                return found.path
        raise NotRunError(found.error)

    return make


def nncf(question: Question, data: Data, choosing: Data, folder: Path) -> Path:
    """`nncf.quantize_with_accuracy_control` with the same data and the same drop allowed."""
    order = _order(question, data, choosing, folder / "nncf.onnx", JUDGED)
    return _ordered("nncf-peers", NNCF_PACKAGES, NNCF, order)


def olive(question: Question, data: Data, choosing: Data, folder: Path) -> Path:
    """Olive's search over its quantizations for the lowest latency, with the same data and the same drop allowed."""
    order = _order(question, data, choosing, folder / "olive.onnx", OLIVE_JUDGED)
    (scores, *_) = onnxruntime_run(question.case.path)(_row(data, 0)).values()
    order |= {"classes": scores.shape[-1], "seconds": OLIVE_SECONDS}
    return _ordered("olive-peers", OLIVE_PACKAGES, OLIVE, order)


def _order(question: Question, data: Data, choosing: Data, result: Path, judged: int) -> dict[str, Any]:
    """What a peer in its own environment is asked: to calibrate on the first samples and to judge by what chooses."""
    calibration, count = _calibration(data), len(next(iter(choosing.values())))
    np.savez(
        result.parent / "data.npz",
        **{name: np.concatenate([array[:calibration], choosing[name]]) for name, array in data.items()},
    )
    return {
        "model": str(question.case.path),
        "data": str(result.parent / "data.npz"),
        "samples": calibration,
        "stride": max(1, count // judged),
        "metric": _metric(question, choosing),
        "max_drop": question.limits["max_drop"],
        "result": str(result),
    }


def _calibration(data: Data) -> int:
    return min(CALIBRATION, len(next(iter(data.values()))))


def _row(data: Data, at: int) -> Data:
    """The feeds of one sample."""
    return {name: array[at : at + 1] for name, array in data.items() if name != "labels"}


def _metric(question: Question, choosing: Data) -> str:
    """The metric that the search goes by."""
    few, run = {name: array[:8] for name, array in choosing.items()}, onnxruntime_run(question.case.path)
    rows = [run(_row(few, at)) for at in range(8)]
    outputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return choose_metrics(outputs, open_dataset(few, question.case.path)).metrics[0].name


def _ordered(environment: str, packages: Sequence[str], script: Path, order: Mapping[str, Any]) -> Path:
    """The file that a peer makes to order."""
    try:
        command = [interpreter(environment, packages), script]
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except PeerError as error:
        raise NotRunError(str(error)) from None
    except subprocess.TimeoutExpired:
        raise NotRunError(f"took more than {SECONDS} s") from None
    if done.returncode < 0:
        raise NotRunError(f"it was ended by signal {-done.returncode}")
    if done.returncode:
        raise NotRunError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    if not Path(order["result"]).exists():
        raise NotRunError("nothing that it tried keeps within the limit")
    return Path(order["result"])


MAKERS: dict[str, Maker] = {
    "pumice, defaults": defaults,
    "ort static": stock(STOCK[0], PER_TENSOR),
    "ort dynamic": stock(STOCK[1]),
    "NNCF, accuracy control": nncf,
    "Olive, search": olive,
}


def made(maker: Maker, question: Question, data: Data, choosing: Data, folder: Path) -> Path:
    """The file.

    Raises:
        NotRunError: with the reason.
    """
    try:
        return maker(question, data, choosing, folder)
    except NotRunError:
        raise
    except Exception as error:
        raise NotRunError(f"{type(error).__name__}: {error}") from None
