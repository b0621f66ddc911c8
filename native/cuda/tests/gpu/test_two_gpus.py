"""Two GPUs train as one does. The processes import this file by its path, so that it is a script as well."""

import json
import subprocess
import sys

import numpy as np

from pumice.data import open_dataset
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.loop import Trainer
from pumice.train.parameters import Parameters
from pumice_cuda.parallel import in_parallel
from pumice_cuda.placing import OnDevice

SECONDS = 240


def fit(peers):
    """Losses and weights as lists."""
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    samples = {"x": x, "labels": (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64)}
    model, settings, placement = tiny_cnn(), Train(epochs=3, batch=16, lr=0.01), OnDevice()
    plan = trainable_plan(model, placement=placement)
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    feeder = Feeder(open_dataset(samples, model), settings.batch)
    parameters = Parameters.of(plan)
    found = Trainer(plan, parameters, loss.value_and_grad, feeder, settings, placement=placement, peers=peers).fit()
    weights = {name: np.asarray(value, np.float32).tolist() for name, value in found.values.items()}
    return [float(v) for v in found.history.losses], weights


def test_two_gpus_train_as_one_does():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    alone, both = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-3)
    for name, values in alone[1].items():
        np.testing.assert_allclose(both[1][name], values, rtol=1e-3, atol=1e-3, err_msg=name)


if __name__ == "__main__":
    sys.stdout.write(json.dumps([fit(None), in_parallel(fit, gpus=2)]))
