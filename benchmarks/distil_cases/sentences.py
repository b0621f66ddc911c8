"""MiniLM of six layers teaches one of three, without labels: verses of a Bible and snippets of reviews are all it sees.

The student is the teacher with every other layer left out, and is judged as the teacher is: the sentiment of reviews,
read off its embeddings by the teacher's own classifier, and verses found among a thousand by another wording. None of
the texts that judge are among those that teach.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import sentences
from models.inference import onnxruntime_run

import pumice
from distil_cases import pictures
from pumice.distil.loss import DistillationLoss
from pumice.distil.students import shortened, weights
from pumice.distil.taps import pairs
from pumice.prune.sizes import with_sizes
from pumice.registry import registry
from pumice.steps import Distil
from pumice.strategy import Loss

COURSE: dict[str, Any] = {
    "batch": 16, "lr": 2e-4, "schedule": "cosine", "warmup": 0.05, "clip": 1.0, "validation": 0.0, "keep": "last",
    "layers": 0.5, "alpha": 1.0,
}  # fmt: skip
EMBEDDING = {"name": "feature-cosine", "at": ["sentence_embedding"], "weight": 5.0}
"""What every way of teaching has in common: the embeddings point where the teacher's do."""


@attrs.frozen(kw_only=True)
class Size:
    texts: int = 3_000
    length: int = 40
    """Tokens of a text; longer ones are cut, shorter ones padded."""
    epochs: int = 1


@attrs.frozen(kw_only=True)
class Outcome:
    """Shares of right answers."""

    sentiment: float
    retrieval: float
    weights: int
    seconds: float


def teacher(_folder: Path) -> Outcome:
    return _judged(sentences.MINILM.path, 0.0)


def untaught(folder: Path) -> Outcome:
    """The student before it learns: layers left out, no more."""
    path = folder / "untaught.onnx"
    pumice.save(shortened(pumice.load(sentences.MINILM.path), 0.5), path)
    return _judged(path, 0.0)


def taught(name: str, size: Size, losses: list[dict[str, Any]], last: bool, seed: int, folder: Path) -> Outcome:
    """The student after its training by the embeddings and these losses, of the last layer only or of all.

    It is left in a file called by the name, and trained on a GPU where there is one.
    """
    made = [_made(EMBEDDING), *(_at_the_end(_made(loss)) if last else _made(loss) for loss in losses)]
    step = Distil(losses=tuple(made), epochs=size.epochs, device=pictures.device(), **COURSE)
    feeds = sentences.unlabelled(size.texts, size.length)
    test = {name: array[:16] for name, array in feeds.items()}
    recipe = pumice.Recipe([step])
    result = pumice.compress(sentences.MINILM.path, feeds, recipe, test=test, measure=False, seed=seed)
    path = folder / f"{name} {seed}.onnx"
    pumice.save(result.model, path)
    return _judged(path, result.seconds["distil"])


def _made(loss: dict[str, Any]) -> DistillationLoss:
    return registry().make(Loss, loss)  # type: ignore[return-value]


def _at_the_end(loss: DistillationLoss) -> DistillationLoss:
    teacher = with_sizes(pumice.load(sentences.MINILM.path))
    last = pairs(loss, with_sizes(shortened(teacher, COURSE["layers"])), teacher)[-1]
    return attrs.evolve(loss, at=(f"{last.student}={last.teacher}",))


def _judged(path: Path, seconds: float) -> Outcome:
    found = sentences.MINILM.evaluate(onnxruntime_run(path))
    return Outcome(
        sentiment=found.value, retrieval=float(np.float64(found.secondary["recall_at_1"])),
        weights=weights(pumice.load(path)), seconds=seconds,
    )  # fmt: skip
