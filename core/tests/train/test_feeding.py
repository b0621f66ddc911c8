"""Order, augmentation and resumption of the data: functions of (seed, epoch, sample) and of nothing else."""

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.errors import DataError, KnobError
from pumice.train import augmentation
from pumice.train.feeding import Feeder


def contents(portions):
    return [(p.batch.feeds["x"].tobytes(), p.batch.labels.tobytes(), p.mixed) for step in portions for p in step]


@pytest.fixture
def pictures():
    draws = np.random.default_rng(3)
    images = draws.random((40, 1, 8, 8)).astype(np.float32)
    return open_dataset({"x": images, "labels": np.arange(40)})


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(pictures):
    feeder = Feeder(pictures, 8, seed=1)
    orders = [np.concatenate([p.batch.labels for step in feeder.epoch(e) for p in step]) for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0].tolist() != orders[1].tolist()


def test_an_incomplete_batch_is_left_out(pictures):
    assert [p.batch.size for step in Feeder(pictures, 12).epoch(0) for p in step] == [12, 12, 12]


@pytest.mark.parametrize("augment", [(), ("flip", "crop", "cutout", "mixup")])
def test_an_epoch_goes_on_from_any_step_as_if_it_had_never_stopped(pictures, augment):
    feeder = Feeder(pictures, 8, seed=5, augment=augment)
    whole = contents(feeder.epoch(2))
    assert contents(Feeder(pictures, 8, seed=5, augment=augment).epoch(2, start=3)) == whole[3:]


def test_augmentation_changes_with_the_epoch_and_the_seed(pictures):
    seen = {contents(Feeder(pictures, 40, seed=s, augment=("crop",)).epoch(e))[0] for s in (0, 1) for e in (0, 1)}
    assert len(seen) == 4


def test_a_sample_is_augmented_alike_in_any_batch(pictures):
    def by_label(batch):
        steps = Feeder(pictures, batch, seed=2, augment=("flip", "crop", "cutout")).epoch(0)
        return {int(n): x.tobytes() for s in steps for p in s for n, x in zip(p.batch.labels, p.batch.feeds["x"])}  # noqa: B905

    assert by_label(4) == by_label(20)


def test_flipping_twice_is_the_identity():
    picture = np.random.default_rng(0).random((1, 1, 4, 4)).astype(np.float32)
    key = next(k for k in range(99) if augmentation.generator(0, 0, k).random() < 0.5)
    flipped = augmentation.augmented(picture, ["flip"], [augmentation.generator(0, 0, key)], "x")
    np.testing.assert_array_equal(flipped, picture[..., ::-1])


def test_cutout_sets_a_square_to_the_mean():
    picture = np.random.default_rng(0).random((1, 1, 16, 16)).astype(np.float32)
    changed = augmentation.augmented(picture, ["cutout"], [augmentation.generator(0, 0, 7)], "x")
    different = changed != picture
    assert 16 <= different.sum() <= 64
    np.testing.assert_allclose(changed[different], picture.mean(), rtol=1e-6)


def test_mixup_blends_with_the_next():
    pictures = np.random.default_rng(0).random((3, 1, 4, 4)).astype(np.float32)
    mixed = augmentation.mixed(pictures, 0.75)
    np.testing.assert_allclose(mixed[2], 0.75 * pictures[2] + 0.25 * pictures[0], rtol=1e-6)
    assert mixed.dtype == np.float32


def test_an_unknown_augmentation_is_refused_with_the_nearest(pictures):
    with pytest.raises(KnobError, match="no augmentation 'flips'; did you mean 'flip'"):
        Feeder(pictures, 8, augment=("flips",))


def test_what_are_no_pictures_cannot_be_augmented(dataset):
    with pytest.raises(DataError, match="input 'x' is not a batch of pictures"):
        list(Feeder(dataset, 8, augment=("flip",)).epoch(0))
