import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.errors import DataError
from pumice.testing import DistillationLossContract
from pumice_distil_relational import RelationalAngle, RelationalDistance

RNG = np.random.default_rng(4)
POINTS = RNG.standard_normal((6, 4))
both = pytest.mark.parametrize("loss", [RelationalDistance(), RelationalAngle()], ids=lambda loss: loss.name)


def value(loss, own, other=POINTS):
    return loss.value_and_grad({"y": own}, TaughtBatch(targets={"y": Target(other)}))[0]


class TestRelationalDistance(DistillationLossContract):
    strategy = RelationalDistance


class TestRelationalAngle(DistillationLossContract):
    strategy = RelationalAngle


class TestRelationalAngleOfTokens(DistillationLossContract):
    strategy = RelationalAngle

    def outputs(self):
        return {"value": self._values((4, 3, 5), 3)}


@both
def test_relations_survive_moving_turning_and_scaling_everything(loss):
    rotation = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    assert value(loss, 3 * POINTS @ rotation + 5) == pytest.approx(0, abs=1e-12)


@both
def test_other_relations_cost(loss):
    assert value(loss, POINTS[::-1]) > 1e-3


@both
def test_one_sample_has_no_relations(loss):
    with pytest.raises(DataError, match="make batches larger"):
        value(loss, POINTS[:1], POINTS[:1])


@both
def test_equal_samples_do_no_harm(loss):
    value_, grads = loss.value_and_grad({"y": np.ones((4, 3))}, TaughtBatch(targets={"y": Target(POINTS[:4])}))
    assert np.isfinite(value_)
    assert np.isfinite(grads["y"]).all()
