"""Networks to train from scratch: valid models, of the size they say, every parameter of which gets a gradient."""

import numpy as np
import pytest
from models import networks

from pumice.autograd import Tape
from pumice.model import load
from pumice.train import Parameters
from pumice.train.application import trainable_plan

PICTURES = {"x": np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)}
WORDS = {"x": np.random.default_rng(0).integers(0, 50, (2, 6))}
BUILDERS = {
    "resnet": (networks.resnet, PICTURES, 165_000),
    "deep": (networks.deep, PICTURES, 400_000),
    "bottlenecks": (networks.bottlenecks, PICTURES, 115_000),
    "vit": (networks.vit, PICTURES, 455_000),
    "lstm": (networks.lstm, PICTURES, 214_000),
    "bert": (lambda path: networks.bert(path, width=16, layers=2, heads=2, words=50), WORDS, 7_500),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_parameter_of_a_network_gets_a_gradient(name, tmp_path):
    build, feeds, size = BUILDERS[name]
    plan = trainable_plan(load(build(tmp_path / "net.onnx")))
    parameters = Parameters.of(plan)
    assert sum(value.size for value in parameters.values.values()) == pytest.approx(size, rel=0.03)
    outputs, pull = Tape(plan, parameters.values, training=True).forward({**feeds, **parameters.values})
    draws = np.random.default_rng(1)
    gradients = pull({key: draws.standard_normal(y.shape).astype(np.float32) for key, y in outputs.items()})
    silent = {key for key, g in gradients.items() if not g.any()}
    behind_zero = {key for key in gradients if ".b.conv" in key}  # a residual branch begins switched off
    assert silent <= behind_zero | {key for key in gradients if ".a." in key}


def test_the_same_seed_gives_the_same_file(tmp_path):
    first, second = (networks.resnet(tmp_path / f"{i}.onnx").read_bytes() for i in range(2))
    assert first == second
