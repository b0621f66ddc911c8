"""The `train` step: a model, the data of a run and the knobs become a training; its result goes back into the model.

Part of the data is held out to judge epochs by: with the run's first metric that needs labels, or else with the loss.
A loss that was left open is cross-entropy for whole-number labels and the mean squared error for real ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.autograd import with_training_kernel
from pumice.errors import DataError
from pumice.model import clone, fingerprint, nodes
from pumice.ops.record import Array, Placement
from pumice.plan import Plan, compile_plan
from pumice.registry import registry
from pumice.strategy import Loss, Metric, Runtime
from pumice.train.feeding import Feeder
from pumice.train.loop import Fit, Judge, Trainer
from pumice.train.optimizers import norm
from pumice.train.parameters import Parameters

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.ledger import Ledger
    from pumice.pipeline import RunContext
    from pumice.steps import Train

_log = logging.getLogger("pumice")
JUDGED_AT_ONCE = 100
"""Samples of one forward run when an epoch is judged."""


def train(settings: Train, model: ir.Model, context: RunContext) -> ir.Model:
    """The trained model; `model` is left unchanged.

    Raises:
        DataError: no data, no labels, or samples that cannot be trained on.
        UnsupportedOp: an operator on the way has no gradient.
    """
    dataset = _dataset(context)
    loss = settings.loss or default_loss(dataset)
    placement = placement_of(settings.device)
    plan = trainable_plan(model, placement=placement)
    parameters = Parameters.of(plan, freeze=settings.freeze, keep_zeros=settings.keep_zeros)
    before = {name: fetched(value.copy(), placement) for name, value in parameters.values.items()}
    training, held_out = split(dataset, settings.validation)
    trainer = Trainer(
        plan,
        parameters,
        loss.value_and_grad,
        Feeder(training, min(settings.batch, training.count()), context.seed, settings.augment),
        settings,
        judge=None if held_out is None else judge(plan, held_out, loss, context.metrics, placement),
        run=run_of(settings, loss, model, dataset, context.seed),
        progress=context.progress,
        placement=placement,
    )
    fit = trainer.fit()
    trained = clone(model)
    parameters.write(trained, fit.values)
    account(context.ledger, trained, parameters, before, fit, loss, settings.name)
    return trained


def placement_of(device: str) -> Placement | None:
    """Where to train, by the name of a runtime that has a device; the CPU, with one line in the log, if it cannot run.

    Raises:
        PumiceError: no such runtime is installed.
    """
    if device == "cpu":
        return None
    runtime = registry().make(Runtime, device)
    reason = runtime.available()
    placement = None if reason else runtime.placement()
    if placement is None:
        _log.warning("training on the CPU: %s", reason or f"the runtime '{device}' has no device of its own")
    return placement


def fetched(array: Any, placement: Placement | None) -> Array:
    """The array on the CPU."""
    return array if placement is None else placement.fetch(array)  # type: ignore[no-any-return]


def trainable_plan(model: ir.Model, outputs: list[str] | None = None, *, placement: Placement | None = None) -> Plan:
    """The model compiled with every operator and kernel installed, those of training included."""
    table, device = registry().ops, placement.device if placement else "cpu"
    usable = (k for k in registry().kernels if k.device == device and k.available() is None)
    kernels = sorted(usable, key=lambda k: -k.rank)
    plan = compile_plan(model, outputs, ops=table, kernels=kernels, placement=placement)
    steps = tuple(with_training_kernel(step, table, kernels) for step in plan.steps)
    return attrs.evolve(plan, program=attrs.evolve(plan.program, steps=steps))


def _dataset(context: RunContext) -> Dataset:
    if context.training is None:
        raise DataError("step 'train' needs data to train on: give it with --data (data=)")
    if not context.training.labelled:
        raise DataError(f"step 'train' needs labels, but {context.training.name} has none: add them to the data")
    return context.training


def default_loss(dataset: Dataset) -> Loss:
    """By the label of the first sample."""
    sample = next(iter(dataset.samples([0])), None)
    if sample is None:
        raise DataError(f"{dataset.name} is empty: give at least one sample to train on")
    kind = np.asarray(sample.label).dtype.kind
    if kind not in "iufb":
        raise DataError(f"no loss is known for the labels of {dataset.name}: name one with the knob 'loss'")
    return registry().make(Loss, "mse" if kind == "f" else "cross-entropy")


def split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """What trains and what is held out to judge by; nothing is held out of fewer than ten samples."""
    count = round(dataset.count() * share)
    if count < 1 or dataset.count() < 10:
        return dataset, None
    held_out, training = dataset.split(count)
    return training, held_out


def judge(
    plan: Plan, dataset: Dataset, loss: Loss, metrics: tuple[Metric, ...], placement: Placement | None = None
) -> Judge:
    """Scores values of the initializers by the first metric that labels suffice for, or by the loss, negated."""
    metric = next((m for m in metrics if dataset.labelled and not m.fidelity), None)

    def score(values: Mapping[str, Array]) -> float:
        total, count = 0.0, 0
        for batch in dataset.batches(JUDGED_AT_ONCE):
            outputs = {name: fetched(y, placement) for name, y in plan.run({**batch.feeds, **values}).items()}
            if metric is None:
                total -= loss.value_and_grad(outputs, batch)[0] * batch.size
            else:
                sign = 1.0 if metric.higher_is_better else -1.0
                total += sign * float(metric.score(outputs, batch.labels, {}).sum())
            count += batch.size
        return total / count

    return score


def run_of(settings: Train, loss: Loss, model: ir.Model, dataset: Dataset, seed: int) -> str:
    """Identifies a training: everything that its result depends on."""
    knobs = {key: value for key, value in settings.settings().items() if not key.startswith("snapshot")}
    text = json.dumps([knobs, loss.name, loss.settings(), seed, fingerprint(model), dataset.fingerprint()])
    return hashlib.sha256(text.encode()).hexdigest()


def account(
    ledger: Ledger,
    model: ir.Model,
    parameters: Parameters,
    before: Mapping[str, Array],
    fit: Fit,
    loss: Loss,
    step: str,
) -> None:
    """A line about the whole, with the curves, and one a node."""
    history = fit.history
    ended = "stopped early" if fit.stopped_early else "ended"
    scores = f", best of {len(history.scores)} epochs the {fit.best_epoch}." if history.scores else ""
    ledger.note(
        step,
        f"trained {sum(map(np.size, parameters.values.values())):,} weights for {len(history.losses):,} steps "
        f"with the loss {loss.name}, from {history.losses[0]:.4g} to {_end(history.losses):.4g}; {ended}{scores}",
        **{"losses": history.curve(), "scores": list(history.scores), "steps left out": history.left_out},
    )
    for node in nodes(model):
        names = [str(value.name) for value in node.inputs if value is not None]
        trained = [name for name in names if name in before]
        if trained:
            moved = norm(fit.values[name].astype(np.float64) - before[name] for name in trained)
            length = norm(before[name] for name in trained)
            share = f"{moved / length:.1%} of their length" if length else "from zero"
            ledger.applied(step, node.name or "", node.op_type, f"its weights moved by {share}")
        elif any(name in parameters.frozen for name in names):
            ledger.declined(step, node.name or "", node.op_type, "its weights are frozen, as the recipe says")
        else:
            ledger.skipped(step, node.name or "", node.op_type, "it has no weights")


def _end(losses: list[Any]) -> float:
    """The mean of the last twentieth."""
    return float(np.mean(losses[-max(1, len(losses) // 20) :]))
