"""From a model in floating point to integers that were trained: quantize, train the training graph, round once more.

The accuracy guard may ask again with other layers left out; what was learned the first time is where it begins, and it
is not trained anew. A draft, by which the guard only compares layers, is not trained at all.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import attrs

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


class Learned(dict[str, Array]):
    """Values of initializers of the training graph, by name."""


def trained(qat: Qat, model: ir.Model, context: QuantizeContext) -> ir.Model:
    """The quantized model.

    Raises:
        DataError: there is no labelled data to train on.
    """
    target = attrs.evolve(context.target, weight_bits=qat.weight_bits, channel_scales="none")
    scheme = Scheme(modes=("static",), equalize=False, compensate=False, correct_bias=False, smallest=qat.smallest)
    quantized = quantize_layers(model, scheme, attrs.evolve(context, target=target))
    student = Student.of(quantized, model, qat.weight_bits)
    if not student.weights:
        return quantized
    dataset = _dataset(context)
    sample = next(iter(dataset.samples([0]))).feeds
    learned = context.recall(Learned)
    if not context.draft and not learned:
        fit = _fit(qat, student, dataset, context)
        learned.update(fit.values)
        steps, losses = len(fit.history.losses), fit.history.curve()
        context.ledger.note(
            "quantize",
            f"trained {len(student.weights)} layers with their rounding for {steps:,} steps, "
            f"loss {losses[0]:.4g} to {losses[-1]:.4g}",
            losses=losses,
            scores=list(fit.history.scores),
        )
    known = {name: value for name, value in learned.items() if name in student.model.graph.initializers}
    return student.finished(known, sample)


def _dataset(context: QuantizeContext) -> Dataset:
    if context.training is None or not context.training.labelled:
        raise DataError("quantizer 'qat' trains, so it needs labelled data: give it with --data (data=)")
    return context.training


def _fit(qat: Qat, student: Student, dataset: Dataset, context: QuantizeContext) -> Fit:
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
        epochs=qat.epochs,
        batch=qat.batch,
        lr=qat.lr,
        weight_decay=0.0,
        warmup=0.05,
        batch_statistics=False,
    )
    return Trainer(
        plan,
        parameters,
        loss.value_and_grad,
        Feeder(training, min(qat.batch, training.count()), context.seed),
        settings,
        judge=None if held_out is None else judge(plan, held_out, loss, context.metrics),
        progress=context.progress,
    ).fit()
