import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.errors import DataError
from pumice.testing import DistillationLossContract
from pumice_distil_feature import FeatureCosine, FeatureMse, Pkt

RNG = np.random.default_rng(4)
OWN, OTHER = RNG.standard_normal((6, 4, 3, 3)), RNG.standard_normal((6, 4, 3, 3))


def value(loss, own=OWN, other=OTHER):
    return loss.value_and_grad({"y": own}, TaughtBatch(targets={"y": Target(other)}))[0]


class TestFeatureMse(DistillationLossContract):
    strategy = FeatureMse


class TestAbsoluteFeatureMse(DistillationLossContract):
    strategy = FeatureMse
    settings = {"relative": False}


class TestFeatureCosine(DistillationLossContract):
    strategy = FeatureCosine


class TestPkt(DistillationLossContract):
    strategy = Pkt


class TestPktOfTokens(DistillationLossContract):
    strategy = Pkt

    def outputs(self):
        return {"value": self._values((4, 3, 5), 3)}


def test_the_relative_difference_does_not_depend_on_the_scale():
    assert value(FeatureMse(), OWN * 100, OTHER * 100) == pytest.approx(value(FeatureMse()))


def test_a_direction_has_no_length():
    assert value(FeatureCosine(), OWN * 7) == pytest.approx(value(FeatureCosine()))


def test_who_is_near_whom_does_not_change_with_a_rotation():
    rotation = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    assert value(Pkt(), np.einsum("ncij,cd->ndij", OTHER, rotation)) == pytest.approx(0, abs=1e-12)


def test_two_samples_have_no_neighbours_to_compare():
    with pytest.raises(DataError, match="needs three at least"):
        value(Pkt(), OWN[:2], OTHER[:2])


def test_values_of_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"compares values of one shape, but 'y' is \[6, 4, 3, 3\]"):
        value(FeatureMse(), OWN, OTHER[:, :3])
