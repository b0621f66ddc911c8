import attrs
import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.errors import DataError
from pumice.testing import DistillationLossContract
from pumice_distil_attention import AttentionMaps, AttentionTransfer, ValueRelation

RNG = np.random.default_rng(4)


def value(loss, own, other):
    return loss.value_and_grad({"y": own}, TaughtBatch(targets={"y": Target(other)}))[0]


class TestAttentionTransfer(DistillationLossContract):
    strategy = AttentionTransfer


class TestAttentionTransferOfTokens(DistillationLossContract):
    strategy = AttentionTransfer

    def outputs(self):
        return {"value": self._values((2, 4, 5), 3)}

    def target(self):
        return Target(self._values((2, 4, 7), 4))


class TestAttentionMaps(DistillationLossContract):
    strategy = AttentionMaps


class TestAttentionMapsHeadByHead(DistillationLossContract):
    strategy = AttentionMaps

    def target(self):
        return Target(self._values((2, 2, 3, 3), 4))


class TestValueRelation(DistillationLossContract):
    strategy = ValueRelation


class TestAttentionMapsWithoutPadding(DistillationLossContract):
    strategy = AttentionMaps

    def target(self):
        return attrs.evolve(super().target(), mask=np.array([[1, 1, 0], [1, 1, 1]]))


class TestValueRelationWithoutPadding(DistillationLossContract):
    strategy = ValueRelation

    def target(self):
        return attrs.evolve(super().target(), mask=np.array([[1, 1, 0], [1, 1, 1]]))


def test_maps_without_an_axis_of_heads_are_those_of_one_head():
    own, other = (np.random.default_rng(seed).uniform(0.1, 1, (2, 1, 3, 3)) for seed in (0, 1))
    for mask in (None, np.array([[1, 1, 0], [1, 1, 1]])):
        whole, grad = AttentionMaps().compare(own, Target(other, mask=mask), 0.0)
        bare, bare_grad = AttentionMaps().compare(own[:, 0], Target(other[:, 0], mask=mask), 0.0)
        assert bare == pytest.approx(whole)
        np.testing.assert_allclose(bare_grad, grad[:, 0])


@pytest.mark.parametrize("kind", [AttentionMaps, ValueRelation])
def test_padding_counts_nothing(kind):
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    own, other = (RNG.dirichlet(np.ones(4), (2, 3, 4)) for _ in range(2))
    padding = np.broadcast_to((mask == 0)[:, None, :, None], own.shape)
    expected, grad = kind().compare(own, Target(other, mask=mask), 0.0)
    assert np.all(grad[padding] == 0)
    moved = np.where(padding, RNG.dirichlet(np.ones(4), (2, 3, 4)), own)
    assert kind().compare(moved, Target(other, mask=mask), 0.0)[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", [AttentionMaps, ValueRelation])
def test_a_batch_of_padding_alone_costs_nothing(kind):
    own, other = (RNG.dirichlet(np.ones(4), (2, 3, 4)) for _ in range(2))
    found, grad = kind().compare(own, Target(other, mask=np.zeros((2, 4), np.int64)), 0.0)
    assert found == 0
    assert np.all(grad == 0)


def test_places_are_compared_however_many_channels_there_are():
    places = RNG.uniform(0.5, 2, (3, 1, 4, 4))
    own, other = (np.repeat(places, channels, axis=1) for channels in (2, 5))
    assert value(AttentionTransfer(), own, other) == pytest.approx(0)


def test_pictures_of_other_sizes_are_refused():
    with pytest.raises(DataError, match="of one resolution"):
        value(AttentionTransfer(), RNG.standard_normal((2, 3, 4, 4)), RNG.standard_normal((2, 3, 2, 2)))


def test_relations_do_not_change_when_all_values_are_rotated():
    values = RNG.standard_normal((2, 2, 5, 4))
    rotation = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    assert value(ValueRelation(), values @ rotation, values) == pytest.approx(0, abs=1e-12)
