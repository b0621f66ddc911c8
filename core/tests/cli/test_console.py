"""Progress and answers: bars on a terminal, lines elsewhere, silence when asked."""

import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

from pumice.cli import console as module
from pumice.cli.console import Console, duration, quantity

SLOW = """
import time
from pumice.cli.console import Console
console = Console()
with console.task("outer", total=6) as advance:
    for _ in range(6):
        with console.task("inner", total=4) as step:
            for _ in range(4):
                time.sleep(0.12)
                step()
        advance()
"""


def test_a_terminal_shows_bars_with_the_time_left_and_then_clears_them():
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", SLOW], stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"outer .* [345]/6 \d\.\d s left", text)
    assert re.search(rb"\x1b\[2K\x1b\[\?25h\router: done in \d\.\d s\r\n$", shown)


def test_elsewhere_a_long_task_is_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(module, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with Console().task("calibrate", total=4) as advance:
        advance(2)
        advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert re.fullmatch(r"calibrate: 2 of 4 \(50 %\), \d\.\d s left", lines[0])
    assert re.fullmatch(r"calibrate: done in \d\.\d s", lines[-1])


def test_a_task_of_unknown_length_counts(monkeypatch, capsys):
    monkeypatch.setattr(module, "PLAIN_INTERVAL", 0.0)
    with Console().task("search") as advance:
        advance(3)
    assert capsys.readouterr().err == "search: 3 done\n"


def test_a_short_task_is_not_mentioned(capsys):
    with Console().task("blink", total=1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_quiet_silences_progress_and_answers(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    console = Console(quiet=True)
    with console.task("calibrate", total=1) as advance:
        advance()
    console.answer("done", {})
    console.tell("by the way")
    assert capsys.readouterr() == ("", "")


def test_json_is_the_only_thing_on_standard_output(capsys):
    console = Console(as_json=True)
    console.tell("by the way")
    console.show("a table")
    console.answer("done", {"scores": np.array([1.5]), "count": np.int64(3)})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"scores": [1.5], "count": 3}
    assert captured.err == "by the way\n"


def test_nan_is_never_written_as_json():
    with pytest.raises(ValueError, match="JSON"):
        Console(as_json=True).answer("", {"x": float("nan")})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.84, "0.8 s"), (42, "42 s"), (119.6, "2 min 00 s"), (185, "3 min 05 s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1240, "1.24 kB"), (5e13, "50 TB")])
def test_quantities_read_well(count, text):
    assert quantity(count) == text
