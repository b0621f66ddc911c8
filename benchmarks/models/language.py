"""Predicting the next character: two networks trained on the World English Bible without Romans and Ruth, judged by
bits per character on every fourth stretch of 128 characters of those two books.
"""

import functools
import lzma
import re
from pathlib import Path

import numpy as np

from .lettering import TEXTS
from .records import Case, Evaluation, Feed, Run, first_output

TRAINED = Path(__file__).parent / "trained"
ALPHABET = "\n !\"'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HELD_OUT = ("Romans", "Ruth")
LENGTH, STRIDE, BATCH = 128, 4, 16
CALIBRATION = 64
PLAIN_MARKS = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2014": "-"})


def text_lines(name: str) -> list[str]:
    """The lines `Book chapter:verse: text` of one of the two Bibles, `engWEB` or `engKJV`."""
    with lzma.open(TEXTS / f"{name}.txt.xz", "rt", encoding="utf8") as stream:
        return stream.read().split("\n")


@functools.cache
def _books() -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) characters as indices into the alphabet, int64."""
    training, held_out = [], []
    for line in text_lines("engWEB"):
        if found := re.match(r"((?:I )?\w+) \d+:\d+: (.*)", line):
            (held_out if found[1] in HELD_OUT else training).append(found[2].strip())
    return _encoded(training), _encoded(held_out)


def _encoded(verses: list[str]) -> np.ndarray:
    """Typographic marks become plain ones, any other foreign character a space."""
    numbers = {character: number for number, character in enumerate(ALPHABET)}
    text = "\n".join(verses).translate(PLAIN_MARKS)
    return np.array([numbers.get(character, numbers[" "]) for character in text], np.int64)


@functools.cache
def _test_set() -> tuple[np.ndarray, np.ndarray]:
    """Characters (n, 128) and the characters that follow each of them."""
    text = _books()[1]
    whole = (len(text) - 1) // LENGTH * LENGTH
    return text[:whole].reshape(-1, LENGTH)[::STRIDE], text[1 : whole + 1].reshape(-1, LENGTH)[::STRIDE]


def stretches(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Characters (count, 128) spread over the training text, and the characters that follow each of them."""
    text = _books()[0]
    starts = np.linspace(0, len(text) - LENGTH - 1, count).astype(np.int64)[:, None]
    return text[starts + np.arange(LENGTH)], text[starts + np.arange(1, LENGTH + 1)]


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """The same of the two books that no network was trained on."""
    return _test_set()


def _calibrate() -> list[Feed]:
    stretches = _books()[0][: CALIBRATION * LENGTH].reshape(CALIBRATION, LENGTH)
    return [{"ids": stretches[start : start + 8]} for start in range(0, CALIBRATION, 8)]


def information(logits: np.ndarray, following: np.ndarray) -> np.ndarray:
    """(..., characters), (...) -> (...) bits that the characters which follow cost under the softmax of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, following[..., None], axis=-1)[..., 0]
    return np.asarray((np.log(np.exp(shifted).sum(axis=-1)) - chosen) / np.log(2))


def _judge(run: Run) -> Evaluation:
    characters, following = _test_set()
    bits, best = [], []
    for start in range(0, len(characters), BATCH):
        part = slice(start, start + BATCH)
        logits = first_output(run({"ids": characters[part]})).astype(np.float64)
        bits.append(information(logits, following[part]).mean(axis=1))
        best.append(logits.argmax(axis=-1))
    scores, answers = np.concatenate(bits), np.concatenate(best)
    return Evaluation(
        metric="bits per character",
        value=float(scores.mean()),
        scores=scores,
        answers=answers.ravel(),
        higher_is_better=False,
        secondary={"accuracy": float((answers == following).mean())},
    )


def _case(name: str, summary: str) -> Case:
    return Case(
        id=name,
        summary=f"{summary}, bits per character on Romans and Ruth",
        locate=lambda: TRAINED / f"{name}.onnx",
        calibrate=_calibrate,
        sample=lambda: {"ids": _test_set()[0][:1]},
        judge=_judge,
    )


CHAR_GPT = _case("char_gpt", "four-layer decoder of width 128 over 128 characters")
CHAR_LSTM = _case("char_lstm", "two LSTM layers over characters")
