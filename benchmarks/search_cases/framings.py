"""EfficientNet-Lite0's pictures: the stamps that nobody gave a class, on white, some as they are, some framed anew.

They are divided by their names' digests, so that no stamp is in two parts: the first calibrate, as they are; the others
choose or judge. Most of them show nothing that ImageNet knows, and where a network has no answer anything changes the
one it gives. So what chooses or judges are framings that the float network recognises, which are as hard to keep as the
labelled stamps. Every picture is there mirrored, too.
"""

import functools
import hashlib

import numpy as np
from models import Evaluation, Run, case, onnxruntime_run, photographs, stamps
from PIL import Image

CALIBRATING, CHOOSING = 175, 240
"""Stamps; those that are left judge."""
ZOOMS = (0.85, 1.0, 1.3)
"""Sides of the square that is shown, as shares of the usual one."""
RECOGNISED = 0.25
"""Probability of the likeliest class from which on a picture counts as recognised. onnxruntime's static quantization
changes as large a share of the answers to these as of those to the labelled stamps, 3.8 and 3.7%."""


def calibrating(quick: bool) -> np.ndarray:
    """(n, 3, 224, 224) the first stamps as the case shows them."""
    return _mirrored_too(np.stack([photographs.on_white(stamp) for stamp in _part(0, CALIBRATING, quick)]))


def choosing(quick: bool) -> np.ndarray:
    """(n, 3, 224, 224) recognised framings of the next stamps."""
    return _recognised(_part(CALIBRATING, CALIBRATING + CHOOSING, quick))


def judge(run: Run) -> Evaluation:
    """The case's evaluation, and besides the answers to recognised framings of the last stamps."""
    labelled = case("effnet_lite0").evaluate(run)
    answers = [classes(run, picture) for picture in _judging()]
    return Evaluation(
        metric=labelled.metric,
        value=labelled.value,
        scores=labelled.scores,
        answers=np.concatenate([labelled.answers, np.argmax(answers, axis=1)]),
    )


def classes(run: Run, picture: np.ndarray) -> np.ndarray:
    """(1000,) probabilities."""
    (logits,) = run({"image": np.ascontiguousarray(picture[None])}).values()
    exponents = np.exp(logits[0] - logits[0].max())
    return np.asarray(exponents / exponents.sum())


@functools.cache
def _judging() -> np.ndarray:
    return _recognised(_part(CALIBRATING + CHOOSING, None, quick=False))


def _part(first: int, end: int | None, quick: bool) -> list[str]:
    names = sorted(stamps.stamp_names(), key=lambda name: hashlib.sha256(name.encode()).digest())
    return names[first : first + 40] if quick else names[first:end]


def _recognised(names: list[str]) -> np.ndarray:
    run = onnxruntime_run(case("effnet_lite0").path)
    framings = (_framed(photographs.on_white(stamp), zoom) for stamp in names for zoom in ZOOMS)
    return _mirrored_too(np.stack([one for one in framings if classes(run, one).max() > RECOGNISED]))


def _framed(picture: np.ndarray, zoom: float) -> np.ndarray:
    """A picture (3, 224, 224) with more white around it, or, below 1, the middle of it."""
    size, side = photographs.SIZE, round(photographs.SIZE * zoom)
    pixels = Image.fromarray(_pixels(picture).transpose(1, 2, 0))
    square = Image.new("RGB", (side, side), "white")
    square.paste(pixels, ((side - size) // 2, (side - size) // 2))
    shown = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return np.asarray(((shown - photographs.MEAN) / photographs.SCALE).transpose(2, 0, 1), np.float32)


def _pixels(picture: np.ndarray) -> np.ndarray:
    return np.rint(picture * photographs.SCALE + photographs.MEAN).astype(np.uint8)


def _mirrored_too(pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([pictures, pictures[..., ::-1]])
