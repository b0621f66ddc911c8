"""Small pictures in ten classes: scikit-learn's 8 x 8 digits and Fashion-MNIST's 28 x 28 clothes.

Pixels are scaled to [-1, 1]. Calibration takes the first 256 training pictures in feeds of 32.
"""

import functools
import gzip
from pathlib import Path

import attrs
import numpy as np

from .records import Case, Evaluation, Feed, Run, accuracy, first_output
from .store import package_folder

TRAINED = Path(__file__).parent / "trained"
FASHION = "dataset-fashion-mnist"
CALIBRATION, BATCH = 256, 250


@attrs.frozen(eq=False)
class Pictures:
    """Pictures (n, 1, height, width), float32 in [-1, 1]."""

    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray


@functools.cache
def digits() -> Pictures:
    """1,797 digits, shuffled once: 1,200 for training, 597 held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    pixels = (bunch.images[order] * (255 / 16)).astype(np.uint8)[:, None]
    return Pictures(_scaled(pixels[:CALIBRATION]), _scaled(pixels[1200:]), bunch.target[order][1200:])


@functools.cache
def fashion() -> Pictures:
    """Fashion-MNIST: the official 10,000 test pictures."""
    training = _idx_file("train-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    test = _idx_file("t10k-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    return Pictures(_scaled(training[:CALIBRATION]), _scaled(test), _idx_file("t10k-labels-idx1-ubyte.gz", header=8))


@functools.cache
def fashion_training() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's 60,000 training pictures and their classes."""
    pixels = _idx_file("train-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    return _scaled(pixels), _idx_file("train-labels-idx1-ubyte.gz", header=8).astype(np.int64)


def _idx_file(name: str, header: int) -> np.ndarray:
    folder = package_folder(FASHION) / "usr/share/datasets/fashion-mnist"
    with gzip.open(folder / name) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.astype(np.float32) / 255 * 2 - 1)


def _case(name: str, summary: str) -> Case:
    is_fashion = name.startswith("fashion")
    load = fashion if is_fashion else digits

    def calibrate() -> list[Feed]:
        return [{"x": load().calibration[start : start + 32]} for start in range(0, CALIBRATION, 32)]

    def judge(run: Run) -> Evaluation:
        pictures = load()
        batches = range(0, len(pictures.test), BATCH)
        scores = np.concatenate([first_output(run({"x": pictures.test[at : at + BATCH]})) for at in batches])
        answers = scores.argmax(axis=1)
        return accuracy(answers == pictures.labels, answers)

    return Case(
        id=name,
        summary=summary,
        packages=(FASHION,) if is_fashion else (),
        locate=lambda: TRAINED / f"{name}.onnx",
        calibrate=calibrate,
        sample=lambda: {"x": load().test[:1]},
        judge=judge,
    )


CASES = (
    _case("digits_cnn", "Conv-BN-ReLU, accuracy on 597 digits"),
    _case("fashion_resnet", "residual Conv-BN, accuracy on Fashion-MNIST"),
    _case("fashion_mobile", "inverted residuals with depthwise convolution and ReLU6, accuracy on Fashion-MNIST"),
    _case("fashion_vit", "vision transformer of width 96, accuracy on Fashion-MNIST"),
    _case("fashion_lstm", "two LSTM layers over picture rows, accuracy on Fashion-MNIST"),
)
