"""What a search is given: a case's model, and data such as its user would have.

    fashion_*      20,000 labelled training pictures
    effnet_lite0   squares of eleven photographs, mirrored ones too, without labels
    magika         files of the installed packages, without labels
    minilm         texts without labels

None of them judge: a result is judged by the case, on its own test set. Without labels what may be lost is fidelity.
"""

import functools
import itertools
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case, file_types, photographs, pictures, sentences

PICTURES, QUICK_PICTURES = 20_000, 2_000
CROPS, QUICK_CROPS = 16, 4
FILES, TEXTS, TOKENS = 1200, 600, 64

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

    @property
    def case(self) -> Case:
        return case(self.model)


def _clothes(quick: bool) -> Data:
    pixels, labels = pictures.fashion_training()
    count = QUICK_PICTURES if quick else PICTURES
    return {"x": pixels[:count], "labels": labels[:count]}


def _crops(quick: bool) -> Data:
    squares = np.concatenate([feed["image"] for feed in photographs.crops(QUICK_CROPS if quick else CROPS)])
    return {"image": np.concatenate([squares, squares[..., ::-1]])}


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


def _question(model: str, provide: Callable[[bool], Data], **limits: Any) -> Question:
    asked = {"max_drop": 0.01, **limits}
    suffix = f", {limits['size']:g}x smaller" if "size" in limits else ""
    return Question(id=f"{model}{suffix}", model=model, limits=asked, provide=provide)


QUESTIONS: dict[str, Question] = {
    found.id: found
    for found in (
        _question("fashion_resnet", _clothes),
        _question("fashion_vit", _clothes),
        _question("effnet_lite0", _crops),
        _question("magika", _files),
        _question("minilm", _texts),
        _question("fashion_resnet", _clothes, size=10.0),
        _question("fashion_mobile", _clothes, size=10.0),
    )
}


@functools.cache
def data_of(name: str, quick: bool) -> Data:
    """The data of a question, made once."""
    return QUESTIONS[name].provide(quick)
