"""Fashion-MNIST: a residual network of 165,000 weights teaches one of at most a quarter of that.

A second teacher of four times the weights is trained by `grown` first, and teaches the same student; or what pruning
leaves of it. Students are grown from a description, so that alone and distilled they begin with the same random
weights. A tenth of the labels means that the others are hidden; the teacher, which needs none, says what it thinks of
all pictures.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import pictures

import pumice
from pumice.distil.architectures import built
from pumice.distil.students import weights
from pumice.registry import registry
from pumice.steps import Distil, Prune, Quantize, Step, Train
from pumice.strategy import ImportanceScorer, Loss

TEACHER = pictures.TRAINED / "fashion_resnet.onnx"
STUDENT = {"family": "resnet", "widths": [12, 24, 30]}
WIDE = {"family": "resnet", "widths": [48, 96, 128]}
SMALLEST = {"family": "resnet", "widths": [5, 10, 14]}
LEFT: dict[str, Any] = {
    "ratio": 0.75, "of": "params", "scope": "global", "by": "score-per-param", "recover": "least-squares",
}  # fmt: skip
"""How the wide teacher is pruned: a quarter of its weights is left."""
SOFT = {"name": "soft-targets", "temperature": 4.0}
RUNTIMES = ("native", "ort")
HIDDEN = -100
"""The class of a picture whose label is hidden; the loss on labels passes over it."""


@attrs.frozen
class Outcome:
    """Accuracy on the 10,000 official test pictures, and what it took."""

    accuracy: float
    weights: int
    seconds: float


@attrs.frozen(kw_only=True)
class Size:
    """How much a training sees."""

    pictures: int = 60_000
    test: int = 10_000
    labelled: int = 60_000
    epochs: int = 5


def teacher(test: int, _folder: Path) -> dict[str, float]:
    return {"accuracy": pumice.evaluate(TEACHER, _test(test)).scores["top1"].mean}


def grown(size: Size, epochs: int, folder: Path) -> Outcome:
    """The wide teacher, trained on all labels and left in the folder; on a GPU where there is one."""
    step = Train(epochs=epochs, **{**COURSE, "batch": 256, "lr": 6e-3, "device": device()})
    network = built(WIDE, pumice.load(TEACHER), 0)
    return _ran(network, attrs.evolve(size, labelled=size.pictures), [step], 0, _wide(folder))


def alone(size: Size, seed: int, _folder: Path) -> Outcome:
    """The student trained on labels only: on the pictures that have one."""
    labelled = attrs.evolve(size, pictures=size.labelled)
    longer = round(size.epochs * size.pictures / labelled.pictures)  # as many steps as with all pictures
    step = Train(epochs=longer, **COURSE)
    return _ran(built(STUDENT, pumice.load(TEACHER), seed), labelled, [step], seed)


def taught(size: Size, losses: list[dict[str, Any]], alpha: float, seed: int, folder: Path) -> Outcome:
    """The student trained by the teacher, beginning as in `alone`."""
    return _ran(TEACHER, size, [_lesson(size, losses, alpha, STUDENT, seed, folder)], seed)


def taught_by_wide(size: Size, losses: list[dict[str, Any]], alpha: float, seed: int, folder: Path) -> Outcome:
    """As `taught`, by the teacher that `grown` has left."""
    return _ran(_wide(folder), size, [_lesson(size, losses, alpha, STUDENT, seed, folder)], seed)


def in_stages(size: Size, assistants: int, seed: int, folder: Path) -> Outcome:
    """A student of a twentieth, taught by way of assistants, all stages together in as many steps as without any."""
    share = attrs.evolve(size, epochs=max(1, size.epochs // (assistants + 1)))
    step = _lesson(share, [SOFT], 0.9, SMALLEST, seed, folder)
    return _ran(TEACHER, size, [attrs.evolve(step, assistants=assistants)], seed)


def together(size: Size, seed: int, folder: Path) -> dict[str, Any]:
    """The wide teacher pruned, taught by what it was and quantized: bytes, accuracy, and time on both runtimes."""
    teacher, path = _wide(folder), folder / f"together-{seed}.onnx"
    prune = Prune(**LEFT, scorer=registry().make(ImportanceScorer, "reconstruction"))
    lesson = Distil(losses=_made([SOFT]), epochs=size.epochs, device=device(), **{**COURSE, "batch": 128})
    recipe = pumice.Recipe([prune, lesson, Quantize(max_drop=0.02)])
    result = pumice.compress(teacher, _training(size), recipe, test=_test(size.test), seed=seed, metrics=["top1"])
    result.save(path)
    speed = {
        name: pumice.compare(teacher, path, _test(64), runtime=name, memory=False, batch=1).speedup for name in RUNTIMES
    }
    return {
        "accuracy": result.measurements.after.evaluation.scores["top1"].mean,
        "times smaller": result.measurements.compression,
        **{f"times faster, {name}": found.median for name, found in speed.items()},
        "weights": weights(result.model), "seconds": sum(result.seconds.values()),
    }  # fmt: skip


def _lesson(
    size: Size, losses: list[dict[str, Any]], alpha: float, description: dict[str, Any], seed: int, folder: Path
) -> Distil:
    path = folder / f"student {description['widths']} {seed}.onnx"
    pumice.save(built(description, pumice.load(TEACHER), seed), path)
    made = _made(losses)
    cache = str(folder / "answers.db") if all(loss.compares == "outputs" for loss in made) else ""  # features are large
    return Distil(student=str(path), losses=made, alpha=alpha, epochs=size.epochs, cache=cache, **COURSE)


def _made(losses: list[dict[str, Any]]) -> tuple[Loss, ...]:
    return tuple(registry().make(Loss, loss) for loss in losses)


COURSE: dict[str, Any] = {
    "batch": 64, "lr": 4e-3, "schedule": "one-cycle", "weight_decay": 0.02, "augment": ("flip",), "validation": 0.0,
}  # fmt: skip


def _wide(folder: Path) -> Path:
    return folder / f"teacher {WIDE['widths']}.onnx"


def device() -> str:
    """Where large networks are trained: on a GPU where there is one."""
    return "cuda" if "cuda" in registry().strategies("runtime") else "cpu"


def _ran(model: Any, size: Size, steps: list[Step], seed: int, kept: Path | None = None) -> Outcome:
    result = pumice.compress(
        model, _training(size), pumice.Recipe(steps), test=_test(size.test), measure=False, seed=seed, metrics=["top1"]
    )
    if kept is not None:
        pumice.save(result.model, kept)
    accuracy = result.measurements.after.evaluation.scores["top1"].mean
    seconds = sum(took for name, took in result.seconds.items() if name in {"train", "distil"})
    return Outcome(accuracy, weights(result.model), seconds)


def _training(size: Size) -> dict[str, np.ndarray]:
    x, labels = pictures.fashion_training()
    order = np.random.default_rng(0).permutation(len(x))[: size.pictures]
    shown = labels[order].copy()
    shown[size.labelled :] = HIDDEN
    return {"x": x[order], "labels": shown}


def _test(count: int) -> dict[str, np.ndarray]:
    found = pictures.fashion()
    return {"x": found.test[:count], "labels": found.labels[:count].astype(np.int64)}
