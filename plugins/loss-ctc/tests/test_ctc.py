import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from pumice.errors import DataError
from pumice.testing import LossContract
from pumice_loss_ctc import Ctc

SCORES = np.random.default_rng(6).standard_normal((2, 5, 4))
LABELS = np.array([[1, 1, -1], [2, 3, 1]])


class TestCtc(LossContract):
    strategy = Ctc

    def outputs(self):
        return {"y": SCORES}

    def batch(self):
        return SimpleNamespace(labels=LABELS)


class TestTimeFirst(LossContract):
    strategy = Ctc
    settings = {"layout": "time-first", "blank": 3}

    def outputs(self):
        return {"y": SCORES.swapaxes(0, 1)}

    def batch(self):
        return SimpleNamespace(labels=np.array([[1, 1, -1], [2, 0, 1]]))


def read(path):
    """The labels that an alignment stands for."""
    return [c for c, _ in itertools.groupby(path) if c != 0]


def test_the_loss_sums_over_every_alignment():
    p = np.exp(SCORES) / np.exp(SCORES).sum(axis=2, keepdims=True)
    expected = []
    for rows, labels in zip(p, ([1, 1], [2, 3, 1]), strict=True):
        paths = [path for path in itertools.product(range(4), repeat=5) if read(path) == labels]
        whole = sum(np.prod([rows[t, c] for t, c in enumerate(path)]) for path in paths)
        expected.append(-np.log(whole) / len(labels))
    loss, _ = Ctc().value_and_grad({"y": SCORES}, SimpleNamespace(labels=LABELS))
    assert loss == pytest.approx(np.mean(expected))


def test_labels_may_be_rows_of_different_lengths():
    ragged = np.empty(2, object)
    ragged[:] = [[1, 1], [2, 3, 1]]
    loss, _ = Ctc().value_and_grad({"y": SCORES}, SimpleNamespace(labels=ragged))
    assert loss == Ctc().value_and_grad({"y": SCORES}, SimpleNamespace(labels=LABELS))[0]


def test_labels_that_do_not_fit_into_the_frames_count_for_nothing():
    loss, grads = Ctc().value_and_grad({"y": SCORES[:, :2]}, SimpleNamespace(labels=np.array([[1, 1], [1, 1]])))
    assert loss == 0
    assert not grads["y"].any()


def test_the_blank_is_no_label():
    with pytest.raises(DataError, match="label 0 is the blank"):
        Ctc().value_and_grad({"y": SCORES}, SimpleNamespace(labels=np.array([[0], [1]])))
