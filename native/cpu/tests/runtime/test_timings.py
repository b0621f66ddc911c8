"""Threads that a short step is worth: chosen once, kept on disk, whoever else writes there and whatever is there."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pumice_cpu.runtime.strategy import NativeRuntime
from pumice_cpu.runtime.timings import VARIABLE, Timings, limits, timings

STEPS = ("short and better alone", "short and better together", "", "long")
ALONE, TOGETHER = [5.0, 50.0, 1.0, 900.0], [9.0, 30.0, 1.0, 950.0]


@pytest.fixture
def store(tmp_path):
    return Timings(tmp_path / "folder" / "timings.json")


def measure(threads):
    return ALONE if threads == 1 else TOGETHER


def never(threads):
    raise AssertionError("measured again")


def test_short_steps_that_are_quicker_alone_are_held_to_one_thread(store):
    assert limits(STEPS, 2, measure, store) == [1, 0, 0, 0]


def test_what_was_measured_is_read_from_disk(store):
    limits(STEPS, 2, measure, store)
    assert limits(STEPS, 2, never, Timings(store.path)) == [1, 0, 0, 0]


def test_another_number_of_threads_is_measured_by_itself(store):
    limits(STEPS, 2, measure, store)
    with pytest.raises(AssertionError, match="measured again"):
        limits(STEPS, 3, never, store)


def test_one_thread_needs_no_choice(store):
    assert limits(STEPS, 1, never, store) == [0, 0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'{"a/2": "one"}', b"null"])
def test_a_corrupt_file_counts_as_empty_and_is_replaced(store, content):
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    assert limits(STEPS, 2, measure, Timings(store.path)) == [1, 0, 0, 0]
    assert limits(STEPS, 2, never, Timings(store.path)) == [1, 0, 0, 0]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    assert limits(STEPS, 2, measure, Timings(tmp_path / "file" / "timings.json")) == [1, 0, 0, 0]


WRITER = """
import sys
from pathlib import Path
from pumice_cpu.runtime.timings import Timings
store = Timings(Path(sys.argv[1]))
for number in range(25):
    store.add({f"{sys.argv[2]}.{number}": 1}, 2)
"""


def test_writers_at_once_lose_nothing(store):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, store.path, str(i)]) for i in range(4)]
    assert [process.wait() for process in writers] == [0] * 4
    assert len(json.loads(store.path.read_text())) == 100


def test_a_session_keeps_its_choices_and_answers_the_same_bits(quantized_cnn, given_images, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    feeds = given_images(1)
    answers = [NativeRuntime().open(quantized_cnn, threads=threads).run(feeds)["y"] for threads in (1, 2, 2)]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    assert set(json.loads(timings().path.read_text())) == set(timings().known) != set()
