"""Stages: where the student is much smaller than its teacher, networks of sizes in between pass the teaching on.

With n assistants the share that is kept, of channels or layers, is reached in n + 1 equal factors (Mirzadeh et al.,
AAAI 2020): stage i makes its network from the one that the stage before has trained, and learns from it. A student that
was given learns from the last assistant; then the assistants are the teacher made narrower, with numbers of weights in
a geometric row (weights go with the square of the width).

Each stage is measured on samples that no stage trains on, and must keep its share of the first teacher's score before
the next begins. With a snapshot the network of every stage is a file beside it, and a run that goes on begins with the
first stage that has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pumice.distil.compatibility import require_compatible
from pumice.distil.students import narrowed, shortened, weights
from pumice.errors import BudgetExceeded
from pumice.measure.accuracy import Score, evaluate_many
from pumice.model import clone, load, save
from pumice.train.application import split

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.pipeline import RunContext
    from pumice.steps import Distil

Teach = Callable[["Distil", "ir.Model", "ir.Model", "RunContext"], "ir.Model"]

STAGE = "pumice.stage"
"""Metadata key: which training a network in a file is the result of."""


@attrs.frozen(kw_only=True)
class Link:
    """One network of the chain."""

    weights: int
    score: float | None
    """On the samples held out; None where there are none."""
    share: float | None
    """Of the first teacher's score."""


def in_stages(settings: Distil, model: ir.Model, teacher: ir.Model, context: RunContext, teach: Teach) -> ir.Model:
    """The student after all stages.

    Args:
        settings: the step.
        model: the given student, or what the stages make narrower and shorter.
        teacher: the first teacher.
        context: of the run; has data to train on.
        teach: trains a student by a teacher on the data of the run, as the settings of its stage say.

    Raises:
        BudgetExceeded: a stage lost more than it may; says which.
    """
    assert context.training is not None
    count, chain = settings.assistants + 1, [Link(weights=weights(teacher), score=None, share=None)]
    current, held_out = teacher, split(context.training, settings.validation)[1]
    for number in range(1, count + 1):
        student = _student(settings, model, current, number, context)
        require_compatible(student, current)
        current = teach(_of_stage(settings, number), student, current, context)
        chain.append(_judged(settings, current, teacher, held_out, number, context))
    context.ledger.note(
        settings.name,
        f"the student learned in {count} stages, of {', '.join(f'{link.weights:,}' for link in chain)} weights",
        chain=[attrs.asdict(link) for link in chain],
    )
    return current


def kept(path: Path, run: str) -> ir.Model | None:
    """The network that a stage has left in a file, if it is the result of this training."""
    if not path.exists():
        return None
    found = load(path)
    return found if found.metadata_props.pop(STAGE, None) == run else None


def keep(model: ir.Model, path: Path, run: str) -> None:
    """Leave the network of a stage in a file."""
    marked = clone(model)
    marked.metadata_props[STAGE] = run
    save(marked, path)


def _student(settings: Distil, model: ir.Model, current: ir.Model, number: int, context: RunContext) -> ir.Model:
    count, given = settings.assistants + 1, settings.width == settings.layers == 1
    if given:
        if number == count:
            return model
        share = math.sqrt(weights(model) / weights(current)) ** (1 / (count - number + 1))
        return narrowed(current, share, context)
    start = model if number == 1 else current
    short = shortened(start, settings.layers ** (1 / count), strict=False)
    return narrowed(short, settings.width ** (1 / count), context) if settings.width < 1 else short


def _of_stage(settings: Distil, number: int) -> Distil:
    if not settings.snapshot:
        return settings
    path = Path(settings.snapshot)
    return attrs.evolve(settings, snapshot=str(path.with_name(f"{path.stem}.stage{number}{path.suffix}")))


def _judged(
    settings: Distil, student: ir.Model, teacher: ir.Model, held_out: Dataset | None, number: int, context: RunContext
) -> Link:
    if held_out is None:
        return Link(weights=weights(student), score=None, share=None)
    found = evaluate_many(
        {"teacher": teacher, "student": student},
        held_out,
        context.metrics,
        reference="teacher",
        runtime=context.runtime,
    )
    ours = found["student"].primary
    if ours is None:
        return Link(weights=weights(student), score=None, share=None)
    share = _share(ours, found["teacher"].scores.get(ours.name))
    if share < settings.keep_score:
        raise BudgetExceeded(
            f"stage {number} of {settings.assistants + 1} keeps {share:.1%} of the teacher's score, less than the "
            f"{settings.keep_score:.1%} it must: train longer, add an assistant, or lower keep_score"
        )
    return Link(weights=weights(student), score=ours.mean, share=share)


def _share(ours: Score, theirs: Score | None) -> float:
    """Of the teacher's score that is kept; a score of fidelity, which the teacher has none of, is a share itself."""
    if not ours.metric.higher_is_better:
        return 1 - ours.mean if theirs is None else theirs.mean / max(ours.mean, 1e-12)
    return ours.mean / theirs.mean if theirs is not None and theirs.mean else ours.mean
