"""The `distil` step: teacher and student are opened and checked, joined into one objective, and the student trains.

The teacher is the model named, or else the one that the run was given; the student is the one named, or else the model
that the step gets, as pruning or anything before has left it, made narrower and shorter if asked. The student trains in
a graph of its own that returns what is compared beside its outputs; connectors are part of that graph and stay there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs

from pumice.distil.attribution import Attribution
from pumice.distil.comparison import gain
from pumice.distil.compatibility import aligned, require_compatible
from pumice.distil.connectors import Connection, Connectors
from pumice.distil.loss import DistillationLoss, SampledLoss
from pumice.distil.memory import available_bytes, planned
from pumice.distil.objective import Distillation, Term, asked_for, told
from pumice.distil.stages import in_stages, keep, kept
from pumice.distil.streaming import Streamed
from pumice.distil.students import narrowed, opened, shortened, weights
from pumice.distil.taps import pairs
from pumice.distil.teacher import Answers, Cached, OnDevice, Remembered, identity
from pumice.errors import DataError, KnobError, ModelError, nearest
from pumice.model import clone, fingerprint, load, simplify
from pumice.prune.sizes import with_sizes
from pumice.strategy import Loss, Runtime
from pumice.train import Parameters, Trainer
from pumice.train.application import account, default_loss, fetched, judge, placement_of, run_of, split, trainable_plan
from pumice.train.feeding import Feeder

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.ops.record import Placement
    from pumice.pipeline import RunContext
    from pumice.plan import Plan
    from pumice.steps import Distil


def distil(settings: Distil, model: ir.Model, context: RunContext) -> ir.Model:
    """The student after its training; `model` is left unchanged.

    Raises:
        DataError: no data, or nothing to learn from.
        ModelError: student and teacher do not fit together.
    """
    if context.training is None:
        raise DataError("step 'distil' needs data to train on: give it with --data (data=)")
    teacher = _teacher(settings, model, context)
    student = opened(Path(settings.student), teacher, context.seed) if settings.student else model
    require_compatible(student, teacher)
    if settings.assistants:
        return in_stages(settings, student, teacher, context, taught)
    student = _derived(settings, student, context)
    _require_difference(student, teacher)
    done = taught(settings, student, teacher, context)
    if settings.pairs:
        worth = gain(settings, student, teacher, done, context, taught)
        context.notes.append(str(worth))
        context.ledger.note(settings.name, str(worth), alone=list(worth.alone), taught=list(worth.taught))
    return done


def taught(settings: Distil, student: ir.Model, teacher: ir.Model, context: RunContext) -> ir.Model:
    """The student trained by one teacher on the data of the run, or as an interrupted run has left it in a file."""
    assert context.training is not None
    placement = _placement(settings, context)
    _require_memory(settings, student, teacher, context, placement)
    lesson = Lesson.of(settings, student, teacher, context.training, context, placement)
    path = Path(settings.snapshot).with_suffix(".onnx") if settings.snapshot and settings.assistants else None
    done = kept(path, lesson.run) if path is not None else None
    if done is None:
        done = _trained(lesson, student, context)
        if path is not None:
            keep(done, path, lesson.run)
    _describe(settings, lesson, student, teacher, context)
    return done


def _trained(lesson: Lesson, student: ir.Model, context: RunContext) -> ir.Model:
    before = {name: fetched(value.copy(), lesson.placement) for name, value in lesson.parameters.values.items()}
    fit = lesson.trainer(context).fit()
    done = clone(student)
    lesson.parameters.write(done, {n: value for n, value in fit.values.items() if n in done.graph.initializers})
    account(context.ledger, done, lesson.parameters, before, fit, lesson.objective, lesson.settings.name)
    return done


@attrs.frozen(eq=False, kw_only=True)
class Lesson:
    """A student's training, ready to begin."""

    settings: Distil
    student: ir.Model
    teacher: ir.Model
    plan: Plan
    """Of the student with its connectors; returns its outputs and what is compared."""
    objective: Distillation
    parameters: Parameters
    dataset: Dataset
    run: str
    placement: Placement | None = None

    @classmethod
    def of(
        cls,
        settings: Distil,
        student: ir.Model,
        teacher: ir.Model,
        dataset: Dataset,
        context: RunContext,
        placement: Placement | None = None,
    ) -> Lesson:
        graph, sized = with_sizes(student), with_sizes(teacher)
        connectors = Connectors(graph, sized, settings.connector, context.seed)
        terms = [_term(loss, graph, sized, connectors) for loss in _losses(settings)]
        labels, alpha = _labels(settings, terms, dataset)
        objective = Distillation(
            terms=tuple(terms),
            answers=Remembered(_answers(settings, sized, asked_for(terms), context, placement)),
            alpha=alpha,
            labels=labels,
            outputs=tuple(str(value.name) for value in graph.graph.outputs),
            attribution=_attribution(terms, sized, placement),
        )
        wanted = list(dict.fromkeys([*objective.outputs, *told(terms)]))
        plan = trainable_plan(graph, wanted, placement=placement)
        parameters = Parameters.of(plan, freeze=settings.freeze, keep_zeros=settings.keep_zeros)
        shared = run_of(settings, objective, student, dataset, context.seed)
        run = hashlib.sha256(f"{shared} {fingerprint(teacher)}".encode()).hexdigest()
        return cls(
            settings=settings,
            student=student,
            teacher=teacher,
            plan=plan,
            objective=objective,
            parameters=parameters,
            dataset=dataset,
            run=run,
            placement=placement,
        )

    def trainer(self, context: RunContext) -> Trainer:
        """What trains the student; it goes on from the snapshot if there is one."""
        objective = attrs.evolve(self.objective, progress=lambda: trainer.done)
        training, held_out = split(self.dataset, self.settings.validation)
        trainer = Trainer(
            self.plan,
            self.parameters,
            objective.value_and_grad,
            self.feeder(training, context.seed),
            self.settings,
            judge=None
            if held_out is None
            else judge(self.plan, held_out, self.objective, context.metrics, self.placement),
            run=self.run,
            progress=context.progress,
            placement=self.placement,
        )
        return trainer

    def feeder(self, training: Dataset, seed: int) -> Feeder:
        """Batches of the data, and what the student generates where a loss asks for it."""
        plain = Feeder(training, min(self.settings.batch, training.count()), seed, self.settings.augment)
        sampled = [term.loss for term in self.objective.terms if isinstance(term.loss, SampledLoss)]
        return sampled[0].feeder(plain, self.student, self.teacher, self.parameters) if sampled else plain


def by_teacher(loss: DistillationLoss, student: ir.Model, teacher: ir.Model, runtime: Runtime) -> Distillation:
    """An objective for other trainings: the outputs of a model as another's, e.g. of a quantized one as the original's.

    Raises:
        KnobError: a loss on anything but outputs.
    """
    if loss.compares != "outputs" or loss.at or isinstance(loss, SampledLoss):
        raise KnobError(
            f"the loss '{loss.name}' looks inside the networks: here choose one that compares outputs, or use it in "
            f"step 'distil'"
        )
    (pair,) = pairs(loss, student, teacher)
    term = Term(loss, (Connection(pair.student, pair.teacher),))
    return Distillation(terms=(term,), answers=Remembered(runtime.open(teacher, outputs=[pair.teacher])))


# --- teacher and student ----------------------------------------------------------------------------------------------


def _teacher(settings: Distil, model: ir.Model, context: RunContext) -> ir.Model:
    original = context.original
    if not settings.teacher and original is None:
        raise ModelError("step 'distil' has no teacher: name the ONNX file to learn from with the knob 'teacher'")
    teacher = load(Path(settings.teacher)) if settings.teacher else clone(cast("ir.Model", original))
    simplify(teacher, fold=False)
    return aligned(teacher, original or model)


def _derived(settings: Distil, student: ir.Model, context: RunContext) -> ir.Model:
    if settings.layers < 1:
        student = shortened(student, settings.layers)
    return narrowed(student, settings.width, context) if settings.width < 1 else student


def _require_difference(student: ir.Model, teacher: ir.Model) -> None:
    if fingerprint(student) == fingerprint(teacher):
        raise ModelError(
            "student and teacher are the same network: name a student, set width or layers below 1, or prune before"
        )


def _placement(settings: Distil, context: RunContext) -> Placement | None:
    """The device to train on; the CPU, with a note, for what only the CPU knows how to do."""
    placement = placement_of(settings.device)
    if placement is None:
        return None
    here = [f"the loss '{loss.name}'" for loss in _losses(settings) if not loss.on_device]
    here += ["the knob 'stream'"] * settings.stream
    if here:
        what = ", ".join(here)
        context.notes.append(f"the student was trained on the CPU: {what} cannot be had on '{settings.device}'")
        return None
    return placement


def _require_memory(
    settings: Distil, student: ir.Model, teacher: ir.Model, context: RunContext, placement: Placement | None
) -> None:
    """What the training will hold, told before it begins.

    Raises:
        DataError: it does not fit into what is free.
    """
    assert context.training is not None
    batch = next(context.training.batches(settings.batch))
    try:
        plan = planned(teacher, student, settings, {name: array.shape for name, array in batch.feeds.items()})
    except ModelError as error:
        context.notes.append(str(error))
        return
    needed = plan.total(round(settings.memory * 1e6) or None, streamed=settings.stream)
    free = available_bytes() if placement is None else placement.available_bytes()
    if needed > free:
        where = "this machine" if placement is None else f"'{settings.device}'"
        raise DataError(f"the memory of {where} does not suffice for this distillation: {plan.fitting(free)}")
    said = f"the training needs {needed / 1e6:,.0f} MB at the highest, by plan"
    context.notes.append(said)
    context.ledger.note(settings.name, said, memory=dict(plan.rows()))


# --- the objective ----------------------------------------------------------------------------------------------------


def _losses(settings: Distil) -> list[DistillationLoss]:
    found = []
    for loss in settings.resolved().losses:
        if not isinstance(loss, DistillationLoss):
            raise KnobError(
                f"step 'distil': the loss '{loss.name}' compares with labels, not with a teacher: give it with 'loss'"
            )
        found.append(loss)
    return found


def _term(loss: DistillationLoss, student: ir.Model, teacher: ir.Model, connectors: Connectors) -> Term:
    fed = [str(value.name) for value in student.graph.inputs]
    if loss.mask and loss.mask not in fed:
        raise ModelError(
            f"the loss '{loss.name}' is to read padding from '{loss.mask}', but the student has no such input"
            f"{nearest(loss.mask, fed)}"
        )
    found = pairs(loss, student, teacher)
    return Term(loss, tuple(connectors.connect(pair, same_width=loss.same_width) for pair in found))


def _labels(settings: Distil, terms: Sequence[Term], dataset: Dataset) -> tuple[Loss | None, float]:
    """The loss on labels, and the share of the teacher: all of it where there are no labels."""
    if not dataset.labelled:
        if all(term.loss.until < 1 for term in terms):
            raise DataError(
                f"the teacher's losses are all switched off before the end, and {dataset.name} has no labels to go on "
                f"with: leave the knob 'until' of one at 1, or add labels"
            )
        return None, 1.0
    return settings.loss or default_loss(dataset), settings.alpha


def _answers(
    settings: Distil, teacher: ir.Model, values: Sequence[str], context: RunContext, placement: Placement | None
) -> Answers:
    if placement is not None:
        if settings.cache:
            context.notes.append("the teacher's answers were not remembered: they stay on the device")
        return OnDevice(trainable_plan(teacher, list(values), placement=placement), placement)
    source: Answers = Streamed.of(teacher, values) if settings.stream else context.runtime.open(teacher, outputs=values)
    if not settings.cache:
        return source
    once = set(settings.augment) - {"flip"}  # mirrored or not, a picture comes again
    if once or any(isinstance(loss, SampledLoss) for loss in settings.losses):
        context.notes.append("the teacher's answers were not remembered: what it is asked about does not come twice")
        return source
    return Cached(source, Path(settings.cache), settings.cache_size, identity(fingerprint(teacher), values))


def _attribution(terms: Sequence[Term], teacher: ir.Model, placement: Placement | None) -> Attribution | None:
    wanted = [term for term in terms if term.loss.attribution]
    return Attribution.of(teacher, asked_for(wanted), placement) if wanted else None


# --- the account ------------------------------------------------------------------------------------------------------


def _describe(settings: Distil, lesson: Lesson, student: ir.Model, teacher: ir.Model, context: RunContext) -> None:
    ours, theirs = weights(student), weights(teacher)
    for term in lesson.objective.terms:
        compared = [f"{each.student} = {each.teacher}" for each in term.connections]
        context.ledger.note(
            settings.name, f"the loss '{term.loss.name}' compared {len(compared)} values", compared=compared
        )
    context.notes.append(
        f"the student has {ours:,} weights, {ours / theirs:.0%} of its teacher's {theirs:,}, and learned from it by "
        f"{', '.join(term.loss.name for term in lesson.objective.terms)}"
    )
