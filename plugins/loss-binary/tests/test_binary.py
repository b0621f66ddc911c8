from types import SimpleNamespace

import numpy as np
import pytest

from pumice.errors import DataError
from pumice.testing import LossContract
from pumice_loss_binary import BinaryCrossEntropy

LABELS = np.array([[1, 0, 1, 0, 0], [0, 0, -1, 1, 1], [1, 1, 1, -1, 0], [0, 1, 0, 1, 0]])


class TestBinaryCrossEntropy(LossContract):
    strategy = BinaryCrossEntropy
    settings = {"positive_weight": 2.5}

    def batch(self):
        return SimpleNamespace(labels=LABELS)


class TestProbabilities(LossContract):
    strategy = BinaryCrossEntropy
    settings = {"scores": "probabilities"}

    def outputs(self):
        return {"p": np.linspace(0.05, 0.95, 20).reshape(4, 5)}

    def batch(self):
        return SimpleNamespace(labels=LABELS)


def test_scores_before_and_after_the_sigmoid_have_the_same_loss():
    z = np.random.default_rng(1).standard_normal((4, 5))
    batch = SimpleNamespace(labels=LABELS)
    before = BinaryCrossEntropy().value_and_grad({"y": z}, batch)[0]
    after = BinaryCrossEntropy(scores="probabilities").value_and_grad({"y": 1 / (1 + np.exp(-z))}, batch)[0]
    assert before == pytest.approx(after)


def test_large_scores_do_not_overflow():
    loss, grads = BinaryCrossEntropy().value_and_grad({"y": np.float32([1e4, -1e4])}, SimpleNamespace(labels=[0, 1]))
    assert loss == pytest.approx(1e4)
    np.testing.assert_allclose(grads["y"], [0.5, -0.5])


def test_a_label_above_one_is_refused():
    with pytest.raises(DataError, match="label 3 is not from 0 to 1"):
        BinaryCrossEntropy().value_and_grad({"y": np.zeros(2)}, SimpleNamespace(labels=[0, 3]))
