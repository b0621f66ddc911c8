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
from peers import STOCK, quantized
from peers.environment import PeerError, interpreter

from . import Data, Question

NNCF_PACKAGES = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1")
OLIVE_PACKAGES = ("olive-ai==0.13.0", "onnx==1.23.2", "onnxruntime==1.31.1", "optuna==5.0.0", "requests==2.34.2")
NNCF, OLIVE = (Path(__file__).with_name(f"{name}_peer.py") for name in ("nncf", "olive"))
CALIBRATION, JUDGED, SECONDS = 256, 2000, 1200
OLIVE_JUDGED, OLIVE_SECONDS = 1000, 300
"""Its evaluation takes many times as long a sample; a search that has begun a recipe goes over its time."""

Maker = Callable[[Question, Data, Data | None, Path], Path]
"""A question, its data, what recipes are chosen by if that is no part of them, and a folder to work in -> a file."""


class NotRunError(RuntimeError):
    """A peer that could not be run; the text is the reason."""


def defaults(question: Question, data: Data, choosing: Data | None, folder: Path) -> Path:
    """`pumice.compress` with nothing but its defaults."""
    import pumice

    path = folder / "defaults.onnx"
    pumice.compress(question.case.path, data=data, measure=False).save(path)
    return path


def stock(which: int) -> Maker:
    """One of onnxruntime's own modes, on the feeds that the case calibrates with."""

    def make(question: Question, data: Data, choosing: Data | None, folder: Path) -> Path:
        found = quantized(STOCK[which], question.case.path, [dict(feed) for feed in question.case.calibration()])
        if found.error:
            raise NotRunError(found.error)
        return found.path

    return make


def nncf(question: Question, data: Data, choosing: Data | None, folder: Path) -> Path:
    """`nncf.quantize_with_accuracy_control` with the same data and the same drop allowed."""
    order = _order(question, data, choosing, folder / "nncf.onnx", JUDGED)
    return _ordered("nncf-peers", NNCF_PACKAGES, NNCF, order)


def olive(question: Question, data: Data, choosing: Data | None, folder: Path) -> Path:
    """Olive's search over its quantizations for the lowest latency, with the same data and the same drop allowed."""
    (*_, (scores, *_)) = onnxruntime_run(question.case.path)(question.case.feed).values()
    if (scores < 0).any() and np.isclose(np.linalg.norm(scores), 1.0, atol=1e-3):
        raise NotRunError("its accuracies are those of classes, and this model gives none")
    order = _order(question, data, choosing, folder / "olive.onnx", OLIVE_JUDGED)
    order |= {"classes": scores.shape[-1], "seconds": OLIVE_SECONDS}
    return _ordered("olive-peers", OLIVE_PACKAGES, OLIVE, order)


def _order(question: Question, data: Data, choosing: Data | None, result: Path, judged: int) -> dict[str, Any]:
    """What a peer in its own environment is asked: to calibrate on the first samples and to judge by so many others."""
    if choosing is not None:
        data = {name: np.concatenate([data[name][:CALIBRATION], choosing[name]]) for name in data}
    np.savez(result.parent / "data.npz", **data)
    count = len(next(iter(data.values())))
    calibration = min(CALIBRATION, count // 2)
    return {
        "model": str(question.case.path),
        "data": str(result.parent / "data.npz"),
        "samples": calibration,
        "stride": max(1, (count - calibration) // judged),
        "max_drop": question.limits["max_drop"],
        "result": str(result),
    }


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
    if done.returncode:
        raise NotRunError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return Path(order["result"])


MAKERS: dict[str, Maker] = {
    "pumice, defaults": defaults,
    "ort static": stock(0),
    "ort dynamic": stock(1),
    "NNCF, accuracy control": nncf,
    "Olive, search": olive,
}


def made(maker: Maker, question: Question, data: Data, choosing: Data | None, folder: Path) -> Path:
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
