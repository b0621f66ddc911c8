"""What a search is given: a case's model, and data such as its user would have.

    fashion_*      the 60,000 labelled pictures that trained it, and to choose by half of the official test pictures
    effnet_lite0   squares of eleven photographs, mirrored ones too, and to choose by other cut-outs, without labels
    magika         files of the installed packages, without labels
    minilm         texts without labels

None of them judge: a result is judged by the case, on its own test set, or the half of it that nobody was given. A
network knows the pictures that trained it better than others, so on them a smaller one seems to lose more than it does.
Without labels what may be lost is fidelity.
"""

import functools
import itertools
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, Evaluation, case, file_types, photographs, pictures, sentences, stamps

PICTURES, QUICK_PICTURES = 60_000, 2_000
CHOOSING, QUICK_CHOOSING = 5_000, 1_000
CROPS, QUICK_CROPS = 8, 4
STAMPS, QUICK_STAMPS = 655, 100
FILES, TEXTS, TOKENS = 4000, 1200, 64

Data = dict[str, np.ndarray]


@attrs.frozen(kw_only=True)
class Question:
    """One search: what it is asked, about which model, with which data."""

    id: str
    model: str
    """Id of the case."""
    limits: Mapping[str, Any]
    """Knobs of `Auto`."""
    provide: Callable[[bool], Data]
    """Whether it is quick -> feeds by input, and labels if there are any."""
    choosing: Callable[[bool], Data] | None = None
    """As `provide`: other samples, which recipes are chosen by."""
    shared: int = 0
    """How many samples of the case's own test set those are, its first; the others judge."""

    @property
    def case(self) -> Case:
        return case(self.model)

    def judged(self, found: Evaluation) -> Evaluation:
        """The part of an evaluation that judges."""
        if not self.shared:
            return found
        scores, answers = found.scores[self.shared :], found.answers[self.shared :]
        return attrs.evolve(found, value=float(scores.mean()), scores=scores, answers=answers, secondary={})


def _clothes(quick: bool) -> Data:
    pixels, labels = pictures.fashion_training()
    count = QUICK_PICTURES if quick else PICTURES
    return {"x": pixels[:count], "labels": labels[:count]}


def _other_clothes(quick: bool) -> Data:
    known, count = pictures.fashion(), QUICK_CHOOSING if quick else CHOOSING
    return {"x": known.test[:count], "labels": known.labels[:count].astype(np.int64)}


def _crops(quick: bool) -> Data:
    squares = np.concatenate([feed["image"] for feed in photographs.crops(QUICK_CROPS if quick else CROPS)])
    return {"image": np.concatenate([squares, squares[..., ::-1]])}


def _stamps(quick: bool) -> Data:
    names = stamps.stamp_names()[: QUICK_STAMPS if quick else STAMPS]
    return {"image": np.stack([photographs.on_white(name) for name in names])}


def _files(quick: bool) -> Data:
    """Of every type as many, in the order of their names, as long as there are any."""
    root = Path(sysconfig.get_paths()["purelib"])
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        kind = file_types.TYPES.get(path.suffix[1:])
        if kind and path.is_file() and path.stat().st_size >= file_types.LEAST_BYTES:
            found.setdefault(kind, []).append(path)
    in_turn = (path for paths in itertools.zip_longest(*found.values()) for path in paths if path is not None)
    chosen = itertools.islice(in_turn, FILES)
    return {"bytes": np.stack([file_types.edges(path.read_bytes()) for path in chosen])}


def _texts(quick: bool) -> Data:
    return dict(sentences.unlabelled(TEXTS // 2 if quick else TEXTS, TOKENS))


def _question(model: str, provide: Callable[[bool], Data], size: float = 0.0, **knobs: Any) -> Question:
    limits = {"max_drop": 0.01, **({"size": size} if size else {})}
    suffix = f", {size:g}x smaller" if size else ""
    return Question(id=f"{model}{suffix}", model=model, limits=limits, provide=provide, **knobs)


CLOTHES = {"choosing": _other_clothes, "shared": CHOOSING}
QUESTIONS: dict[str, Question] = {
    found.id: found
    for found in (
        _question("fashion_resnet", _clothes, **CLOTHES),
        _question("fashion_vit", _clothes, **CLOTHES),
        _question("effnet_lite0", _crops, choosing=_stamps),
        _question("magika", _files),
        _question("minilm", _texts),
        _question("fashion_resnet", _clothes, size=10.0, **CLOTHES),
        _question("fashion_mobile", _clothes, size=10.0, **CLOTHES),
    )
}


@functools.cache
def data_of(name: str, quick: bool) -> Data:
    """The data of a question, made once."""
    return QUESTIONS[name].provide(quick)


@functools.cache
def choosing_of(name: str, quick: bool) -> Data | None:
    """What a question's recipes are chosen by, made once; None where that is a part of its data."""
    choosing = QUESTIONS[name].choosing
    return None if choosing is None else choosing(quick)
