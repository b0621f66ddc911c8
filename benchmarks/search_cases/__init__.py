"""What a search is given: a case's model, and data such as its user would have.

    fashion_*      the 60,000 labelled pictures that trained it, and to choose by half of the official test pictures
    effnet_lite0   stamps on white, and to choose by framings of others that the network recognises, without labels
    magika         typed files of the system and of installed packages, and to choose by others
    minilm         texts, and to choose by others, without labels

None of them judge: a result is judged by the case, on its own test set, or the half of it that nobody was given; where
that is too small to tell one changed answer in a hundred, by more that was put aside besides (`framings`,
`typed_files`). A network knows the pictures that trained it better than others, so on them a smaller one seems to lose
more than it does. Without labels what may be lost is fidelity.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from models import Case, Evaluation, Run, case, pictures, sentences

from . import framings, typed_files

PICTURES, QUICK_PICTURES = 60_000, 2_000
CHOOSING, QUICK_CHOOSING = 5_000, 1_000
TEXTS, QUICK_TEXTS, TOKENS = 1200, 400, 64

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
    choosing: Callable[[bool], Data]
    """As `provide`: other samples, which recipes are chosen by."""
    judge: Callable[[Run], Evaluation] | None = None
    """What judges; None is the case."""
    shared: int = 0
    """How many samples of the case's own test set are those to choose by, its first; the others judge."""

    @property
    def case(self) -> Case:
        return case(self.model)

    def evaluate(self, run: Run) -> Evaluation:
        """What a model scores on all that may judge."""
        return (self.judge or self.case.evaluate)(run)

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


def _texts(part: int, quick: bool) -> Data:
    """Every other one of the texts, which are of two kinds, shuffled."""
    found = sentences.unlabelled(QUICK_TEXTS if quick else TEXTS, TOKENS)
    chosen = np.random.default_rng(0).permutation(len(found["input_ids"]))[part::2]
    return {name: tokens[chosen] for name, tokens in found.items()}


CLOTHES = {"provide": _clothes, "choosing": _other_clothes, "shared": CHOOSING}
GIVEN: dict[str, dict[str, Any]] = {
    "fashion_resnet": CLOTHES,
    "fashion_vit": CLOTHES,
    "fashion_mobile": CLOTHES,
    "effnet_lite0": {
        "provide": lambda quick: {"image": framings.calibrating(quick)},
        "choosing": lambda quick: {"image": framings.choosing(quick)},
        "judge": framings.judge,
    },
    "magika": {"provide": typed_files.calibrating, "choosing": typed_files.choosing, "judge": typed_files.judge},
    "minilm": {"provide": functools.partial(_texts, 0), "choosing": functools.partial(_texts, 1)},
}
"""Case -> what its questions have in common."""
OF_ANY_SIZE = ("fashion_resnet", "fashion_vit", "effnet_lite0", "magika", "minilm")
OF_A_TENTH = ("fashion_resnet", "fashion_vit", "effnet_lite0", "magika", "fashion_mobile")


def _question(model: str, size: float = 0.0) -> Question:
    limits = {"max_drop": 0.01, **({"size": size} if size else {})}
    suffix = f", {size:g}x smaller" if size else ""
    return Question(id=f"{model}{suffix}", model=model, limits=limits, **GIVEN[model])


QUESTIONS: dict[str, Question] = {
    question.id: question
    for question in (*map(_question, OF_ANY_SIZE), *(_question(model, size=10.0) for model in OF_A_TENTH))
}


def data_of(name: str, quick: bool) -> Data:
    """The data of a question, made once for all about its model."""
    return _made(QUESTIONS[name].provide, quick)


def choosing_of(name: str, quick: bool) -> Data:
    """What a question's recipes are chosen by, made once for all about its model."""
    return _made(QUESTIONS[name].choosing, quick)


@functools.cache
def _made(provide: Callable[[bool], Data], quick: bool) -> Data:
    return provide(quick)
