"""From a model in floating point to integers that were trained: quantize, train the training graph, round once more.

The accuracy guard may ask again with other layers left out; what was learned the first time is where it begins, and it
is not trained anew. A draft, by which the guard only compares layers, is not trained at all.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

import attrs

from pumice.distil.application import by_teacher
from pumice.distil.loss import DistillationLoss
from pumice.errors import DataError
from pumice.model import weight_of
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.steps import Train
from pumice.train import Fit, Parameters, Trainer
from pumice.train.application import default_loss, judge, split, trainable_plan
from pumice.train.feeding import Feeder
from pumice_quant_qat.student import Array, Student, trainable

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.quantize.context import QuantizeContext
    from pumice_quant_qat import Qat


@attrs.define
class Learned:
    """What the first attempt learned."""

    values: dict[str, Array] = attrs.field(factory=dict)
    """Of initializers of the training graph, by name."""
    warm: ir.Model | None = None
    """The model in floating point behind the warm-up: fixed ranges are those of its values."""
    memory: dict[type, Any] = attrs.field(factory=dict)
    """What the data taught about it."""


def trained(qat: Qat, model: ir.Model, context: QuantizeContext) -> ir.Model:
    """The quantized model.

    Raises:
        DataError: there is no labelled data to train on.
    """
    learned = context.recall(Learned)
    target = attrs.evolve(context.target, weight_bits=qat.weight_bits, channel_scales="none")
    context = attrs.evolve(context, target=target)
    student = _student(qat, model, learned, context)
    if not student.weights:
        return student.quantized
    dataset = _dataset(qat, context)
    if isinstance(qat.loss, DistillationLoss):
        qat = attrs.evolve(qat, loss=by_teacher(qat.loss, student.model, model, context.runtime))
    sample = next(iter(dataset.samples([0]))).feeds
    if not context.draft and not learned.values:
        epochs = qat.epochs
        if warmup := min(qat.warmup, qat.epochs - 1) if qat.scales == "fixed" else 0:
            learned.warm = student.original(model, _fit(qat, warmup, student, dataset, context).values)
            student, epochs = _student(qat, model, learned, context), epochs - warmup
        learned.values.update(_fit(qat, epochs, student, dataset, context).values)
    known = {name: value for name, value in learned.values.items() if name in student.model.graph.initializers}
    return student.finished(known, sample)


def _student(qat: Qat, model: ir.Model, learned: Learned, context: QuantizeContext) -> Student:
    """The training graph with the ranges that calibration sees: those of the model as it is behind the warm-up."""
    scheme = Scheme(modes=("static",), equalize=False, compensate=False, correct_bias=False, smallest=qat.smallest)
    if learned.warm is not None:
        model, context = learned.warm, attrs.evolve(context, recalled=learned.memory)
    return Student.of(quantize_layers(model, scheme, context), model, qat.weight_bits)


def _dataset(qat: Qat, context: QuantizeContext) -> Dataset:
    """Labelled, unless the model in floating point is the teacher."""
    taught = isinstance(qat.loss, DistillationLoss)
    if context.training is None or not (taught or context.training.labelled):
        raise DataError("quantizer 'qat' trains, so it needs labelled data: give it with --data (data=)")
    return context.training


def _fit(qat: Qat, epochs: int, student: Student, dataset: Dataset, context: QuantizeContext) -> Fit:
    plan = trainable_plan(student.model)
    loss = qat.loss or default_loss(dataset)
    training, held_out = split(dataset, 0.1)
    left = [node for node in student.model.graph if weight_of(node) is not None and context.excluded(node)]
    parameters = Parameters.of(
        plan,
        freeze=[glob.escape(str(node.name)) for node in left],
        also=list(trainable(student, scales=qat.scales == "learned")),
    )
    settings = Train(
        epochs=epochs,
        batch=qat.batch,
        lr=qat.lr,
        weight_decay=0.0,
        warmup=0.05,
        batch_statistics=False,
    )
    fit = Trainer(
        plan,
        parameters,
        loss.value_and_grad,
        Feeder(training, min(qat.batch, training.count()), context.seed),
        settings,
        judge=None if held_out is None else judge(plan, held_out, loss, context.metrics),
        progress=context.progress,
    ).fit()
    steps, losses = len(fit.history.losses), fit.history.curve()
    context.ledger.note(
        "quantize",
        f"trained {len(student.weights)} layers with their rounding for {steps:,} steps, "
        f"loss {losses[0]:.4g} to {losses[-1]:.4g}",
        losses=losses,
        scores=list(fit.history.scores),
    )
    return fit
