from types import SimpleNamespace

import numpy as np
import pytest

from pumice.errors import DataError
from pumice.testing import LossContract
from pumice_loss_regression import CosineDistance, Mse

TARGET = np.random.default_rng(8).standard_normal((4, 5))


class TestMse(LossContract):
    strategy = Mse

    def batch(self):
        return SimpleNamespace(labels=TARGET)


class TestCosineDistance(LossContract):
    strategy = CosineDistance

    def batch(self):
        return SimpleNamespace(labels=TARGET)


def test_the_same_direction_has_no_distance():
    loss, grads = CosineDistance().value_and_grad({"y": 3 * TARGET}, SimpleNamespace(labels=TARGET))
    assert loss == pytest.approx(0)
    np.testing.assert_allclose(grads["y"], 0, atol=1e-12)


def test_a_row_of_zeros_has_no_gradient():
    loss, grads = CosineDistance().value_and_grad({"y": np.zeros((2, 3))}, SimpleNamespace(labels=np.ones((2, 3))))
    assert loss == 1
    assert not grads["y"].any()


def test_one_number_a_sample_may_come_without_its_axis():
    loss, _ = Mse().value_and_grad({"y": np.zeros((3, 1))}, SimpleNamespace(labels=np.array([1.0, 2.0, 3.0])))
    assert loss == pytest.approx(14 / 3)


def test_labels_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"labels of shape \[3\] fit no output \(y \[4, 5\]\)"):
        Mse().value_and_grad({"y": TARGET}, SimpleNamespace(labels=np.ones(3)))
