"""Every case by its id, and the evaluation of its float model, which all others are compared with.

A reference is kept in the cache under a digest of the model, of this package's sources and lists, and of the versions
of whatever the sets are made with, so that a changed metric or set is never judged against an outdated one.
"""

import functools
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from . import (
    file_types,
    language,
    photographs,
    pictures,
    pitch,
    pronunciation,
    reading,
    saliency,
    sentences,
    speakers,
    speech,
    text_boxes,
)
from .inference import onnxruntime_run
from .records import Case, Evaluation
from .store import StoreError, cache_folder, file_sha256, written_whole

MADE_WITH = ("numpy", "onnxruntime", "pillow", "scikit-image", "scikit-learn", "scipy", "tokenizers")

CASES: dict[str, Case] = {
    found.id: found
    for found in (
        *pictures.CASES,
        reading.OCR_CLS,
        speech.SILERO_VAD,
        file_types.MAGIKA,
        pitch.CREPE_TINY,
        pronunciation.G2P,
        photographs.EFFNET_LITE0,
        sentences.MINILM,
        reading.EASYOCR,
        speakers.RESEMBLYZER,
        reading.OCR_REC,
        text_boxes.OCR_DET,
        saliency.VITS_FOCUS,
        language.CHAR_GPT,
        language.CHAR_LSTM,
    )
}
"""Small models first, then those of real size."""


def case(name: str) -> Case:
    """The case with this id. Raises StoreError, naming the known ids, if there is none."""
    if name not in CASES:
        raise StoreError(f"there is no case {name!r}: choose one of {', '.join(CASES)}")
    return CASES[name]


def reference(of: Case) -> Evaluation:
    """The float model's evaluation in onnxruntime; computed once."""
    place = cache_folder() / "references" / f"{of.id}-{_digest(of)}.npz"
    if not place.exists():
        evaluation = of.evaluate(onnxruntime_run(of.path))
        with written_whole(place) as work, work.open("wb") as stream:
            _write(evaluation, stream)
    return _read(place)


def _digest(of: Case) -> str:
    parts = [file_sha256(of.path), _sources_digest(), platform.python_version(), *map(version, MADE_WITH)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


@functools.cache
def _sources_digest() -> str:
    folder = Path(__file__).parent
    sources = sorted([*folder.glob("*.py"), *folder.glob("texts/*")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _write(evaluation: Evaluation, stream) -> None:
    record = {
        "metric": evaluation.metric,
        "value": evaluation.value,
        "higher_is_better": evaluation.higher_is_better,
        "secondary": dict(evaluation.secondary),
    }
    np.savez_compressed(stream, scores=evaluation.scores, answers=evaluation.answers, record=json.dumps(record))


def _read(place: Path) -> Evaluation:
    with np.load(place) as arrays:
        return Evaluation(scores=arrays["scores"], answers=arrays["answers"], **json.loads(str(arrays["record"])))
