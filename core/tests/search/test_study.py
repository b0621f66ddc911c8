"""What a search leaves on disk: trials that survive a kill, and prefixes that are whole or not there."""

import multiprocessing
import os
import time

import pytest

from pumice.errors import PumiceError
from pumice.ledger import Ledger
from pumice.search.prefixes import ABANDONED, Prefix, Prefixes
from pumice.search.study import Study
from pumice.search.trial import Trial
from pumice.steps import Prune, Quantize
from pumice.testing.models import serialized, tiny_cnn


def trial(number):
    return Trial(number=number, values={"pipeline": "prune"}, recipe={"step": []}, origin="test", state="failed")


def test_trials_come_back_as_they_were(tmp_path):
    study = Study.open(tmp_path, {"seed": 0})
    study.add(trial(2))
    study.add(trial(1))
    assert Study.open(tmp_path, {"seed": 0}).trials() == [trial(1), trial(2)]


def test_a_study_of_another_question_is_refused(tmp_path):
    Study.open(tmp_path, {"seed": 0, "model": "a"})
    with pytest.raises(PumiceError, match=r"another search \(seed differ\)"):
        Study.open(tmp_path, {"seed": 1, "model": "a"})


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "study.sqlite").write_bytes(b"not a data base" * 100)
    with pytest.raises(PumiceError, match="cannot keep a study"):
        Study.open(tmp_path, {})


def killed_after(folder):
    study = Study.open(folder, {})
    study.add(trial(1))
    os._exit(9)


def test_a_kill_loses_nothing_that_was_finished(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_after, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [t.number for t in Study.open(tmp_path, {}).trials()] == [1]


def test_one_search_at_a_time_goes_on_with_a_study(tmp_path):
    study = Study.open(tmp_path, {})
    with study.alone(), pytest.raises(PumiceError, match="another search goes on in"), study.alone():
        pass
    with study.alone():
        study.add(trial(1))


@pytest.fixture
def prefixes(tmp_path):
    return Prefixes(tmp_path / "prefixes", "origin")


def prefix(seed=0):
    ledger = Ledger()
    ledger.applied("prune", "conv", "Conv", "it was cut", channels=3)
    return Prefix(tiny_cnn(seed), ledger, ["a note"])


def test_a_prefix_comes_back_with_its_account(prefixes):
    prefixes.put("key", prefix())
    found = prefixes.get("key")
    assert serialized(found.model) == serialized(prefix().model)
    assert (found.ledger.to_json(), found.notes) == (prefix().ledger.to_json(), ["a note"])


def test_what_was_never_kept_or_is_damaged_is_not_there(prefixes):
    assert prefixes.get("key") is None
    prefixes.put("key", prefix())
    model = prefixes.folder / "key" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    assert prefixes.get("key") is None


def test_a_key_names_everything_that_decides_the_result(prefixes):
    other = Prefixes(prefixes.folder, "another origin")
    keys = {
        prefixes.key([Prune()], False),
        prefixes.key([Prune()], True),
        prefixes.key([Prune(ratio=0.5)], False),
        prefixes.key([Prune(), Quantize()], False),
        other.key([Prune()], False),
    }
    assert len(keys) == 5
    assert prefixes.key([Prune()], False) == prefixes.key([Prune()], False)


def test_what_a_killed_run_left_half_written_goes_once_nobody_can_be_writing_it(prefixes):
    for name, age in ((".new-old", 2 * ABANDONED), (".new-now", 0.0)):
        (prefixes.folder / name / "entry").mkdir(parents=True)
        os.utime(prefixes.folder / name, (time.time() - age,) * 2)
    prefixes.put("key", prefix())
    assert {entry.name for entry in prefixes.folder.iterdir()} == {"key", ".new-now"}


def test_the_entries_unused_for_longest_make_room(prefixes):
    for number, name in enumerate(("a", "b", "c")):
        prefixes.put(name, prefix())
        os.utime(prefixes.folder / name, (number, number))
    one = sum(file.stat().st_size for file in (prefixes.folder / "a").iterdir())
    Prefixes(prefixes.folder, "origin", bound=int(2.5 * one)).put("d", prefix())
    assert {entry.name for entry in prefixes.folder.iterdir()} == {"c", "d"}
