"""A character GPT of 843,000 weights teaches one of a fifth: forward against reverse divergence, offline and on policy.

Every student begins with the same weights and makes as many steps. Two things are asked of it: what it knows (bits and
accuracy on held-out books), and what it writes (how plausible the teacher finds it, how varied it is, how often it
repeats itself, how the teacher's surprise grows along the text against that at real text).
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import language
from models.language import information

import pumice
from pumice.distil.architectures import built
from pumice.distil.students import weights
from pumice.measure import pick_runtime
from pumice.registry import registry
from pumice.steps import Distil, Step, Train
from pumice.strategy import Loss
from pumice.train.application import trainable_plan
from pumice_distil_policy.generation import Decoder, sample
from pumice_distil_policy.quality import quality

TEACHER = language.TRAINED / "char_gpt.onnx"
STUDENT = {"family": "gpt", "width": 60, "layers": 3, "heads": 4, "positions": language.LENGTH}
COURSE: dict[str, Any] = {
    "batch": 16, "lr": 3e-3, "schedule": "cosine", "warmup": 0.05, "weight_decay": 0.01, "clip": 1.0, "validation": 0.0,
    "keep": "last",
}  # fmt: skip
PROMPT = 16


@attrs.frozen(kw_only=True)
class Size:
    stretches: int = 4000
    epochs: int = 2
    judged: int = 64
    """Sequences that are generated, and held-out stretches that are predicted."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What a student knows, and what it writes."""

    bits: float
    accuracy: float
    perplexity: float
    distinct: float
    """Different 3-grams over all."""
    repetition: float
    exposure: float
    """How many times more the teacher's surprise, against that at real text, is at the end than at the beginning."""
    weights: int
    seconds: float


def teacher(size: Size, seed: int, _folder: Path) -> Outcome:
    return _judged(TEACHER, size, seed)


def trained(
    name: str, size: Size, losses: list[dict[str, Any]], alpha: float, before: str, seed: int, folder: Path
) -> Outcome:
    """A student after a training; without losses by the text alone.

    Args:
        name: of the way it is taught; the student is left in a file called so.
        size: how much it sees.
        losses: of the teacher.
        alpha: share of the teacher.
        before: the name whose student it begins with; empty: a new one.
        seed: of the new student, of the order and of what is written.
        folder: of students.
    """
    start = folder / f"{before or f'{name} begins'} {seed}.onnx"
    if not before:
        pumice.save(built(STUDENT, pumice.load(TEACHER), seed), start)
    made = tuple(registry().make(Loss, loss) for loss in losses)
    course = {**COURSE, "epochs": size.epochs, **({"lr": 5e-4} if before else {})}
    step: Step = Distil(student=str(start), losses=made, alpha=alpha, **course) if made else Train(**course)
    tokens, following = language.stretches(size.stretches)
    test = dict(zip(("ids", "labels"), (part[:8] for part in language.held_out()), strict=True))
    model = TEACHER if made else start
    result = pumice.compress(
        model, {"ids": tokens, "labels": following}, pumice.Recipe([step]), test=test, measure=False, seed=seed,
        metrics=["token-accuracy"],
    )  # fmt: skip
    pumice.save(result.model, folder / f"{name} {seed}.onnx")
    seconds = sum(took for name, took in result.seconds.items() if name in {"train", "distil"})
    return _judged(folder / f"{name} {seed}.onnx", size, seed, seconds)


def _judged(path: Path, size: Size, seed: int, seconds: float = 0.0) -> Outcome:
    """Of the model in a file."""
    model, runtime = pumice.load(path), pick_runtime("ort")
    tokens, following = (part[: size.judged] for part in language.held_out())
    (scores,) = runtime.open(model).run({"ids": tokens}).values()
    decoder = Decoder.of(trainable_plan(model), language.LENGTH)
    written = sample([decoder.start()], [1.0], tokens[:, :PROMPT], language.LENGTH, np.random.default_rng(seed))
    found = quality(written, runtime.open(TEACHER), "ids", tokens)
    return Outcome(
        bits=float(information(scores.astype(np.float64), following).mean()),
        accuracy=float((scores.argmax(axis=-1) == following).mean()),
        perplexity=found.perplexity, distinct=found.distinct[3], repetition=found.repetition,
        exposure=found.drift[-1] / found.drift[0], weights=weights(model), seconds=seconds,
    )  # fmt: skip
