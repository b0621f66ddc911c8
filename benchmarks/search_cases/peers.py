"""What others make of a question: our defaults without a search, onnxruntime's defaults, NNCF's accuracy control.

Each is a function of a question and a folder that holds its data; it returns a file, or the reason why there is none.
Olive's search is not run: olive-ai 0.13.0 ends with an error of its own as soon as a metric is not an accuracy, so it
cannot be asked for speed.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from peers import STOCK, quantized
from peers.environment import PeerError, interpreter

from . import Data, Question

NNCF_PACKAGES = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1")
NNCF = Path(__file__).with_name("nncf_peer.py")
CALIBRATION, JUDGED, SECONDS = 256, 2000, 1200
OLIVE = "not run: olive-ai 0.13.0 fails at any metric but accuracy ('NoneType' object has no attribute 'model_dump')"

Maker = Callable[[Question, Data, Path], Path]


class NotRunError(RuntimeError):
    """A peer that could not be run; the text is the reason."""


def defaults(question: Question, data: Data, folder: Path) -> Path:
    """`pumice.compress` with nothing but its defaults."""
    import pumice

    path = folder / "defaults.onnx"
    pumice.compress(question.case.path, data=data, measure=False).save(path)
    return path


def stock(which: int) -> Maker:
    """One of onnxruntime's own modes, on the feeds that the case calibrates with."""

    def make(question: Question, data: Data, folder: Path) -> Path:
        found = quantized(STOCK[which], question.case.path, [dict(feed) for feed in question.case.calibration()])
        if found.error:
            raise NotRunError(found.error)
        return found.path

    return make


def nncf(question: Question, data: Data, folder: Path) -> Path:
    """`nncf.quantize_with_accuracy_control` with the same data and the same drop allowed."""
    count, path = len(next(iter(data.values()))), folder / "nncf.onnx"
    calibration = min(CALIBRATION, count // 2)
    order = {
        "model": str(question.case.path),
        "data": str(folder / "data.npz"),
        "samples": calibration,
        "stride": max(1, (count - calibration) // JUDGED),
        "max_drop": question.limits["max_drop"],
        "result": str(path),
    }
    try:
        command = [interpreter("nncf-peers", NNCF_PACKAGES), NNCF]
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except PeerError as error:
        raise NotRunError(str(error)) from None
    except subprocess.TimeoutExpired:
        raise NotRunError(f"took more than {SECONDS} s") from None
    if done.returncode:
        raise NotRunError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return path


MAKERS: dict[str, Maker] = {
    "pumice, defaults": defaults,
    "ort static": stock(0),
    "ort dynamic": stock(1),
    "NNCF, accuracy control": nncf,
}


def made(maker: Maker, question: Question, data: Data, folder: Path) -> Path:
    """The file.

    Raises:
        NotRunError: with the reason.
    """
    try:
        return maker(question, data, folder)
    except NotRunError:
        raise
    except Exception as error:
        raise NotRunError(f"{type(error).__name__}: {error}") from None
