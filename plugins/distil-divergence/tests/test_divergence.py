import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.testing import DistillationLossContract
from pumice_distil_divergence import JensenShannon, ReverseKl, SkewedKl, SoftTargets

RNG = np.random.default_rng(4)
OWN, OTHER = RNG.standard_normal((6, 5)), RNG.standard_normal((6, 5))


def value(loss, own=OWN, other=OTHER, progress=0.0):
    return loss.value_and_grad({"y": own}, TaughtBatch(targets={"y": Target(other)}, progress=progress))


class TestSoftTargets(DistillationLossContract):
    strategy = SoftTargets


class TestReverseKl(DistillationLossContract):
    strategy = ReverseKl
    settings = {"temperature": 2.0, "final_temperature": 1.0}


class TestJensenShannon(DistillationLossContract):
    strategy = JensenShannon
    settings = {"beta": 0.3}


class TestSkewedForwards(DistillationLossContract):
    strategy = SkewedKl


class TestSkewedBackwards(DistillationLossContract):
    strategy = SkewedKl
    settings = {"direction": "reverse", "skew": 0.2}


class TestProbabilities(DistillationLossContract):
    strategy = SoftTargets
    settings = {"scores": "probabilities"}

    def compares(self):
        return "attention"


class TestPictures(DistillationLossContract):
    strategy = SoftTargets

    def compares(self):
        return "features"

    def target(self):
        return Target(self._values((4, 3, 2, 2), 4))


def test_the_size_of_the_gradient_hardly_depends_on_the_temperature():
    sizes = [np.linalg.norm(value(SoftTargets(temperature=t))[1]["y"]) for t in (10.0, 50.0)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_at_temperature_one_it_is_the_divergence_of_the_probabilities():
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (OTHER, OWN))
    assert value(SoftTargets(temperature=1.0))[0] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert value(ReverseKl(temperature=1.0))[0] == pytest.approx((q * np.log(q / p)).sum(axis=1).mean())


def test_the_temperature_moves_evenly_to_its_end():
    annealed = SoftTargets(temperature=4.0, final_temperature=2.0)
    assert value(annealed, progress=0.5)[0] == pytest.approx(value(SoftTargets(temperature=3.0))[0])


def test_without_skew_it_is_the_plain_divergence():
    plain, skewed = SoftTargets(temperature=1.0), SkewedKl(temperature=1.0, skew=0.0)
    assert value(skewed)[0] == pytest.approx(value(plain)[0])


def test_a_bounded_divergence_stays_below_the_logarithm_of_two():
    far = np.eye(5) * 1e3
    loss = JensenShannon(temperature=1.0)
    assert value(loss, far, far[::-1])[0] <= np.log(2) + 1e-9


def test_reverse_seeks_a_mode_where_forward_covers_both():
    two = np.log(np.array([[0.495, 0.495, 0.01]]))
    one, both = np.log(np.array([[0.98, 0.01, 0.01]])), np.log(np.array([[0.34, 0.33, 0.33]]))
    forward, reverse = SoftTargets(temperature=1.0), ReverseKl(temperature=1.0)
    assert value(forward, both, two)[0] < value(forward, one, two)[0]
    assert value(reverse, one, two)[0] < value(reverse, both, two)[0]
