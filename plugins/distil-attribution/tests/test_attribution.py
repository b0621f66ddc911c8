import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.errors import DataError
from pumice.testing import DistillationLossContract
from pumice_distil_attribution import Attribution

RNG = np.random.default_rng(4)
OWN, OTHER = RNG.standard_normal((2, 3, 2, 2)), RNG.standard_normal((2, 3, 2, 2))


def grad(importance, **knobs):
    batch = TaughtBatch(targets={"y": Target(OTHER, importance)})
    return Attribution(**knobs).value_and_grad({"y": OWN}, batch)[1]["y"]


class TestElements(DistillationLossContract):
    strategy = Attribution


class TestChannels(DistillationLossContract):
    strategy = Attribution
    settings = {"over": "channels", "method": "integrated"}


class TestTokens(DistillationLossContract):
    strategy = Attribution
    settings = {"over": "places"}

    def outputs(self):
        return {"value": self._values((2, 3, 5), 3)}

    def target(self):
        return Target(self._values((2, 3, 5), 4), np.random.default_rng(5).uniform(0, 2, (2, 3, 5)))


def test_what_does_not_matter_is_not_corrected():
    importance = np.ones(OTHER.shape)
    importance[:, 1] = 0
    found = grad(importance, over="channels")
    assert not found[:, 1].any()
    assert found[:, [0, 2]].all()


def test_it_asks_for_the_attribution_that_it_is_set_to():
    assert Attribution(method="integrated").attribution == "integrated"


def test_without_attributions_it_is_refused():
    with pytest.raises(DataError, match="in the step 'distil'"):
        grad(None)
