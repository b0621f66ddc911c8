"""The root command: help, exit codes, sentences instead of tracebacks."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pumice.cli.application import COMMANDS, EXIT_CODES, application
from pumice.errors import PumiceError
from pumice.strategy import Command
from pumice.testing.models import serialized, tiny_cnn

PUMICE = str(Path(sys.executable).with_name("pumice"))


@pytest.fixture
def failing(install, plugin):
    """A command `fail` that raises what it is given."""

    def failing(error):
        def body():
            raise error

        command = Command(name="fail", summary="fails", load=lambda: click.Command("fail", callback=body))
        return install(failing=plugin(pumice_commands=[command]))

    return failing


def test_help_lists_every_command_and_the_exit_codes(run):
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(f"  {name}" in shown.stdout for name in COMMANDS)
    assert " ".join(EXIT_CODES.split()) in " ".join(shown.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_its_first_line(name):
    command = importlib.import_module(f"pumice.cli.{name}").command
    assert command.name == name
    assert command.help.splitlines()[0] == COMMANDS[name]


def test_no_command_is_imported_before_it_is_used(shell):
    code = "import sys; import pumice.cli; print(sorted(m for m in sys.modules if m.startswith('pumice.cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pumice.cli.application']"


def test_help_loads_nothing_heavy():
    heavy = ["onnx", "onnx_ir", "onnxruntime", "scipy", "sympy"]
    code = (
        "import sys; from pumice.cli import main; sys.argv = ['pumice', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_told(run):
    from pumice import __version__

    assert run("--version").stdout == f"pumice {__version__}\n"


def test_a_refusal_is_one_sentence_on_stderr_and_code_2(failing, run):
    failing(PumiceError("the file is\n  broken: mend it"))
    done = run("fail")
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "pumice: the file is broken: mend it\n")


def test_a_misspelt_command_names_the_nearest(run):
    done = run("comprss")
    assert done.exit_code == 2
    assert "there is no command 'comprss'; did you mean 'compress'?" in done.stderr


def test_a_misspelt_option_names_the_nearest(run):
    done = run("compress", "--sampels", "3")
    assert done.exit_code == 2
    assert "'--sampels'" in done.stderr
    assert "--samples" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_defect_keeps_its_traceback(failing, run):
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run("fail")


def test_an_interrupt_is_told_with_code_130(failing, run):
    failing(KeyboardInterrupt())
    done = run("fail")
    assert done.exit_code == 130
    assert done.stderr.strip().startswith("pumice: interrupted")


def test_a_full_disk_is_told_with_code_2(failing, run):
    failing(OSError(errno.ENOSPC, "No space left on device", "out.onnx"))
    done = run("fail")
    assert done.exit_code == 2
    assert done.stderr == (
        "pumice: cannot write to 'out.onnx': no space left on device; free some space or choose another place\n"
    )


def test_full_standard_output_is_told_without_a_traceback():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PUMICE, "plugins", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("pumice: cannot write")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    model = tmp_path / os.fsdecode(b"m\xff.onnx")
    model.write_bytes(serialized(tiny_cnn()))
    done = subprocess.run([PUMICE, "inspect", model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"m\udcff.onnx" in done.stdout


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([PUMICE, "plugins", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


WAITING = """
import sys, time
from pumice.cli.application import application

@application.command("wait")
def wait():
    try:
        print("ready", flush=True)
        time.sleep(60)
    {ending}

sys.modules["pumice.cli.application"].COMMANDS = {{}}
application.get_command = lambda ctx, name: wait
application.main(["wait"])
"""


@pytest.mark.parametrize(
    ("ending", "cleaned"),
    [
        ("finally: print('cleaned', flush=True)", "cleaned\n"),
        ("except BaseException: print('swallowed', flush=True); time.sleep(60)", "swallowed\n"),
        ("except BaseException: print('swallowed', flush=True); int('x')", "swallowed\n"),
    ],
    ids=["unwinds", "though swallowed", "though turned into another error"],
)
@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_signal_ends_the_run(ending, cleaned, number, word):
    code = WAITING.format(ending=ending)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    rest, said = process.communicate(timeout=20)
    assert (process.returncode, rest) == (128 + number, cleaned)
    assert said.strip() == f"pumice: {word}; nothing was left half written"


def test_a_plugin_command_is_listed_with_its_origin_and_runs(install, plugin, run):
    command = Command(
        name="greet",
        summary="says hello",
        load=lambda: click.Command("greet", callback=lambda: click.echo("hello")),
    )
    install(greeter=plugin(pumice_commands=[command]))
    assert "says hello [dist-greeter]" in run("--help").stdout
    assert run("greet").stdout == "hello\n"


def test_a_plugin_cannot_replace_a_command_of_core(install, plugin, run):
    command = Command(name="doctor", summary="fake", load=lambda: click.Command("doctor"))
    install(thief=plugin(pumice_commands=[command]))
    assert "fake" not in run("--help").stdout
    assert "versions" in run("doctor").stdout


def test_a_broken_plugin_is_one_line_on_stderr(tmp_path):
    info = tmp_path / "crumbly-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crumbly\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pumice]\ncrumbly = crumbly\n")
    (tmp_path / "crumbly.py").write_text("raise RuntimeError('two\\nlines')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([PUMICE, "plugins", "--json"], env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "crumbly" in line]
    assert len(lines) == 1
    assert lines[0].startswith("pumice: warning: plugin 'crumbly'")
    assert "pumice doctor" in lines[0]
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_main_restores_the_handlers_of_signals(run, number):
    before = signal.getsignal(number)
    run("--version")
    assert signal.getsignal(number) is before


def test_standalone_mode_off_lets_errors_through():
    with pytest.raises(click.UsageError):
        application.main(["nothing"], standalone_mode=False)
