"""What questions were answered with, kept in a folder, so that searching, making rivals and judging may be done apart.

    QUESTION/found.json    what a search came to, and found.onnx and found.toml where it has a winner
    MODEL/RIVAL.onnx       a rival's file, or RIVAL.txt, why there is none; questions about one model share them
    *.npz                  beside a file what it scores, and MODEL/float.npz what the original does

What lies there is taken as it is; delete it to have it anew.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Evaluation, onnxruntime_run

from pumice.search import Found

from . import Question
from .peers import NotRunError


@attrs.frozen(kw_only=True)
class Answer:
    """What a search came to."""

    path: Path | None
    note: str
    """The winner's recipe in a few words, or the verdict where there is none."""
    tally: str
    overhead: float
    curve: Sequence[tuple[float, float]]
    """(seconds, gain) whenever a better trial within the limits was finished."""
    details: dict[str, Any]
    """`Found.to_json`."""


def answered(question: Question, folder: Path, ask: Callable[[], tuple[Found, Path]]) -> Answer:
    """The answer that lies in the folder, or else that of `ask`: what was found, and the folder of its study."""
    place = folder / slug(question.id)
    record, model = place / "found.json", place / "found.onnx"
    if not record.exists():
        place.mkdir(parents=True, exist_ok=True)
        found, study = ask()
        winner = found.verdict.winner
        if winner is not None:
            shutil.copyfile(study / "models" / winner.trial.model, model)
            found.recipe.write(place / "found.toml")
        told = {
            "note": found.verdict.sentence() if winner is None else winner.trial.shape,
            "tally": found.tally, "overhead": found.overhead, "curve": curve(found), "details": found.to_json(),
        }  # fmt: skip
        record.write_text(json.dumps(told, default=float))
    return Answer(path=model if model.exists() else None, **json.loads(record.read_text()))


def curve(found: Found) -> list[tuple[float, float]]:
    """(seconds, gain) whenever a better trial within the limits was finished."""
    best, points = 0.0, []
    for trial in sorted(found.trials, key=lambda trial: trial.finished):
        gain = trial.figures.speedup * trial.figures.compression if trial.figures and trial.feasible else 0.0
        if gain > best:
            best = gain
            points.append((trial.finished, gain))
    return points


def rival(name: str, question: Question, folder: Path, make: Callable[[], Path]) -> Path:
    """The rival's file that lies in the folder, or else the one that `make` gives.

    Raises:
        NotRunError: there is none, for the reason that lies there or that `make` raises.
    """
    place = folder / question.model / f"{name}.onnx"
    reason = place.with_suffix(".txt")
    if reason.exists():
        raise NotRunError(reason.read_text())
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(make(), place)
        except NotRunError as error:
            reason.write_text(str(error))
            raise
    return place


def evaluated(question: Question, path: Path, place: Path) -> Evaluation:
    """What a file scores in onnxruntime on all that may judge, computed once and kept in `place` (.npz)."""
    if not place.exists() or place.stat().st_mtime < path.stat().st_mtime:
        found = question.evaluate(onnxruntime_run(path))
        told = {"metric": found.metric, "value": found.value, "higher_is_better": found.higher_is_better}
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place, scores=found.scores, answers=found.answers, told=json.dumps(told))
    with np.load(place) as kept:
        return Evaluation(scores=kept["scores"], answers=kept["answers"], **json.loads(str(kept["told"])))


def slug(question: str) -> str:
    """A question's name as a folder's."""
    return question.replace(", ", "-").replace(" ", "-")
