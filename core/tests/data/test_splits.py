import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.data import open_dataset, open_splits
from pumice.errors import DataError


def table(count: int, period: int = 10):
    return {"x": np.arange(count, dtype=np.float32)[:, None], "labels": np.arange(count) % period}


def indices(dataset) -> list[int]:
    return [int(s.feeds["x"][0, 0]) for s in dataset.samples()]


@settings(deadline=None, max_examples=30)
@given(st.integers(256, 3000))
def test_the_parts_are_disjoint_and_cover_everything(count):
    splits = open_splits(table(count))
    calibration, test = indices(splits.calibration), indices(splits.test)
    assert sorted(calibration + test) == list(range(count))
    assert len(calibration) <= min(512, count // 2)
    assert len(calibration) >= min(512, count // 2) - 1


def test_calibration_is_spread_evenly_over_the_data():
    chosen = indices(open_splits(table(10_000)).calibration)
    per_tenth = np.histogram(chosen, bins=10, range=(0, 10_000))[0]
    assert per_tenth.min() >= 50


def test_classes_that_take_turns_are_all_calibrated():
    splits = open_splits(table(5120))  # one in ten: a plain stride would meet one class only
    assert np.bincount(np.concatenate([b.labels for b in splits.calibration.batches()])).min() > 30


def test_the_split_is_the_same_every_time():
    assert indices(open_splits(table(700)).test) == indices(open_splits(table(700)).test)


def test_few_samples_serve_as_both_and_it_is_said():
    splits = open_splits(table(31))
    assert len(splits.calibration) == len(splits.test) == 31
    assert "measured on the samples that calibrated" in splits.note
    assert splits.note in splits.notes


def test_a_folder_may_hold_both_parts(tmp_path):
    for name, count in (("calibration", 5), ("test", 9)):
        np.savez(tmp_path / f"{name}.npz", **table(count))
    splits = open_splits(tmp_path)
    assert (len(splits.calibration), len(splits.test)) == (5, 9)
    assert "'calibration.npz'" in splits.note
    assert len(open_dataset(tmp_path)) == 9


def test_other_data_may_be_measured_on():
    splits = open_splits(table(2000), test=table(40))
    assert (len(splits.calibration), len(splits.test)) == (512, 40)


def test_the_same_data_twice_is_said():
    note = open_splits(table(300), test=table(300)).note
    assert "measured on the samples that calibrated" in note
    assert open_splits(table(300), test=table(40)).note == "calibrated on the arrays, measured on the arrays"


@pytest.mark.parametrize("count", [60, 3000])
def test_fewer_calibration_samples_are_spread_as_well(count):
    chosen = indices(open_splits(table(count), calibration_samples=20).calibration)
    assert len(chosen) == 20
    assert np.histogram(chosen, bins=4, range=(0, count))[0].min() >= 4


def test_splits_pass_through():
    splits = open_splits(table(64))
    assert open_splits(splits) is splits


def test_labels_beside_a_folder_with_parts_are_refused(tmp_path):
    for name in ("calibration", "test"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((2, 1)))
    with pytest.raises(DataError, match="beside the samples of each part"):
        open_splits(tmp_path, labels=[1, 2])


def test_a_split_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match="give more data"):
        open_dataset(table(4)).split(4)
