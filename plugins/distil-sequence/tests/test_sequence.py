import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.testing import DistillationLossContract
from pumice_distil_sequence import Sequence

RNG = np.random.default_rng(4)
OWN, OTHER = RNG.standard_normal((2, 3, 5)), RNG.standard_normal((2, 3, 5))


def value(own=OWN, other=OTHER, **knobs):
    return Sequence(**knobs).value_and_grad({"y": own}, TaughtBatch(targets={"y": Target(other)}))


class TestSequence(DistillationLossContract):
    strategy = Sequence
    exact = False

    def outputs(self):
        return {"value": self._values((2, 3, 5), 3)}

    def target(self):
        return Target(self._values((2, 3, 5), 4))


class TestSingle(DistillationLossContract):
    strategy = Sequence
    settings = {"confidence": 0.0}
    exact = False


def test_it_is_the_cross_entropy_with_the_best_classes():
    log_q = OWN - np.log(np.exp(OWN).sum(axis=2, keepdims=True))
    best = np.take_along_axis(log_q, OTHER.argmax(axis=2)[..., None], 2)
    assert value(confidence=0.0)[0] == pytest.approx(-best.mean())


def test_a_sequence_that_the_teacher_doubts_counts_for_less():
    doubted = OTHER.copy()
    doubted[0] *= 1e-3
    grad = value(other=doubted, confidence=4.0)[1]["y"]
    assert np.abs(grad[0]).sum() < 0.1 * np.abs(grad[1]).sum()
