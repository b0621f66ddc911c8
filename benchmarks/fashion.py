"""Fashion-MNIST for the scripts that train on it: a network learns the 60,000 training pictures, a file is judged by
the official 10,000 test pictures in onnxruntime, and a quantizer gets what it needs of both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import onnx_ir as ir
from models import pictures
from tables import measurement

from pumice.data import Dataset, open_dataset
from pumice.measure.metrics import Top1
from pumice.model import clone, load, save
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss, Runtime
from pumice.train import Fit, Parameters, Trainer
from pumice.train.application import judge, split, trainable_plan
from pumice.train.feeding import Feeder

AT_ONCE = 250
HELD_OUT = 0.02


@attrs.frozen(kw_only=True)
class Trained:
    """A network after its training."""

    model: ir.Model
    fit: Fit

    @property
    def minutes(self) -> float:
        return self.fit.seconds / 60


def training_data(model: ir.Model, count: int | None = None) -> Dataset:
    """The training pictures with their classes, or the first of them."""
    pixels, labels = pictures.fashion_training()
    (x,) = (value.name for value in model.graph.inputs)
    return open_dataset({x: pixels[:count], "labels": labels[:count]}, model)


def train(path: Path, knobs: Mapping[str, Any], count: int | None = None) -> Trained:
    """A network trained with cross-entropy, judged after every epoch by 2% of the training pictures."""
    model = load(path)
    plan = trainable_plan(model)
    loss = registry().make(Loss, {"name": "cross-entropy", "label_smoothing": 0.05})
    settings = Train(**{"schedule": "one-cycle", "weight_decay": 0.05, **knobs})
    training, held_out = split(training_data(model, count), HELD_OUT)
    assert held_out is not None
    feeder = Feeder(training, settings.batch, 0, settings.augment)
    parameters = Parameters.of(plan)
    score = judge(plan, held_out, loss, (Top1(),))
    fit = Trainer(plan, parameters, loss.value_and_grad, feeder, settings, judge=score).fit()
    trained = clone(model)
    parameters.write(trained, fit.values)
    return Trained(model=trained, fit=fit)


def accuracy(model: ir.Model, folder: Path, threads: int = 1) -> float:
    """The share of the test pictures that onnxruntime, given the saved model, puts into the right class."""
    path = folder / "judged.onnx"
    save(model, path)
    session = registry().make(Runtime, "ort").open(path, threads=threads)
    test, (x,) = pictures.fashion(), (value.name for value in model.graph.inputs)
    right = 0
    for at in range(0, len(test.test), AT_ONCE):
        (scores,) = session.run({x: test.test[at : at + AT_ONCE]}).values()
        right += int((scores.argmax(axis=1) == test.labels[at : at + AT_ONCE]).sum())
    return right / len(test.test)


def judged(case: str, model: ir.Model, folder: Path, whole: float | None) -> dict[str, Any]:
    """A row about the accuracy of a model; `whole` is that of the network in floating point."""
    found = accuracy(model, folder)
    peers = {} if whole is None else {"float": whole}
    return measurement(case, "accuracy", found, peers, spread=0.0, higher_is_better=True)


def quantization(model: ir.Model, count: int | None = None) -> QuantizeContext:
    """What a quantizer is given: 256 pictures to calibrate on, and all (or `count`) to train on."""
    (x,) = (value.name for value in model.graph.inputs)
    return QuantizeContext(
        calibration=open_dataset({x: pictures.fashion().calibration}, model),
        runtime=registry().make(Runtime, "ort"),
        target=Target.named("ort-cpu"),
        training=training_data(model, count),
        metrics=(Top1(),),
    )
