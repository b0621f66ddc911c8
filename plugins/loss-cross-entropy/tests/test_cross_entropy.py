from types import SimpleNamespace

import numpy as np
import pytest

from pumice.errors import DataError
from pumice.testing import LossContract
from pumice_loss_cross_entropy import CrossEntropy

RNG = np.random.default_rng(4)
LOGITS = RNG.standard_normal((4, 5))
LABELS = np.array([0, 4, 2, 2])


def value(outputs, labels, **knobs):
    return CrossEntropy(**knobs).value_and_grad(outputs, SimpleNamespace(labels=np.asarray(labels)))


class TestCrossEntropy(LossContract):
    strategy = CrossEntropy

    def batch(self):
        return SimpleNamespace(labels=LABELS)


class TestSmoothedWithIgnoredLabels(LossContract):
    strategy = CrossEntropy
    settings = {"label_smoothing": 0.2, "ignore": -1}

    def batch(self):
        return SimpleNamespace(labels=np.array([0, -1, 2, -1]))


class TestSequences(LossContract):
    strategy = CrossEntropy

    def outputs(self):
        return {"tokens": RNG.standard_normal((2, 3, 4)) * 0 + np.linspace(-1, 1, 24).reshape(2, 3, 4)}

    def batch(self):
        return SimpleNamespace(labels=np.array([[0, 1, -100], [3, -100, -100]]))


class TestSegmentation(LossContract):
    strategy = CrossEntropy

    def outputs(self):
        return {"map": np.sin(np.arange(2 * 3 * 2 * 5.0)).reshape(2, 3, 2, 5)}

    def batch(self):
        return SimpleNamespace(labels=np.arange(20).reshape(2, 2, 5) % 3)


class TestProbabilities(LossContract):
    strategy = CrossEntropy
    settings = {"scores": "probabilities"}

    def outputs(self):
        rows = np.exp(LOGITS)
        return {"p": rows / rows.sum(axis=1, keepdims=True)}

    def batch(self):
        return SimpleNamespace(labels=LABELS)


def test_the_loss_of_even_scores_is_the_logarithm_of_the_classes():
    assert value({"y": np.zeros((3, 7))}, [1, 2, 3])[0] == pytest.approx(np.log(7))


def test_probabilities_are_recognised_and_give_the_loss_of_their_logits():
    rows = np.exp(LOGITS)
    assert value({"y": rows / rows.sum(axis=1, keepdims=True)}, LABELS)[0] == pytest.approx(
        value({"y": LOGITS}, LABELS)[0]
    )


def test_one_hot_labels_are_class_numbers():
    one_hot = np.eye(5)[LABELS]
    np.testing.assert_allclose(value({"y": LOGITS}, one_hot)[1]["y"], value({"y": LOGITS}, LABELS)[1]["y"])


def test_ignored_positions_have_no_gradient():
    grad = value({"y": LOGITS}, [0, -100, 1, -100])[1]["y"]
    assert not grad[[1, 3]].any()
    assert grad[[0, 2]].all()


def test_large_scores_do_not_overflow():
    loss, grads = value({"y": np.float32([[1e4, -1e4]])}, [1])
    assert loss == pytest.approx(2e4)
    assert np.isfinite(grads["y"]).all()


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(DataError, match="label 5 is not one of the 5 classes"):
        value({"y": LOGITS}, [0, 5, 0, 0])


def test_labels_that_fit_no_output_are_refused():
    with pytest.raises(DataError, match=r"labels of shape \[3\] fit no output \(y \[4, 5\]\)"):
        value({"y": LOGITS}, [0, 1, 2])
