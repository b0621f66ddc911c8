"""The root command: finds commands lazily, and turns whatever ends a run into a sentence and an exit code.

code 0    done
code 1    finished, but some of it failed: a model of a batch, a check of the doctor
code 2    bad input: one sentence on standard error
code 130  interrupted (143: terminated, 141: the reader of our output went away)
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, NoReturn, TextIO

import click

from pumice.errors import PumiceError, nearest

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "compress": "Compress one model and account for what was gained and lost.",
        "auto": "Search for the best recipe from whatever is installed, and compress with it.",
        "train": "Train a model on labelled data.",
        "distil": "Train a smaller network, the student, to do what a larger one, the teacher, does.",
        "batch": "Compress many models; one that fails does not stop the rest.",
        "inspect": "Show what is in a model and what would be worth compressing.",
        "evaluate": "Measure the accuracy of a model on data.",
        "diagnose": "Tell where a quantized model lost precision, why, and what would help.",
        "compare": "Measure two models against each other, interleaved.",
        "bench": "Measure how fast a model is on every runtime.",
        "recipe": "Write an example recipe, or check one.",
        "plugins": "List what is installed: strategies, their knobs, who provides them.",
        "doctor": "Check this installation and this machine.",
        "demo": "Compress the example model and show the account.",
    }
)
"""Name and summary of every command of core; the command `x` is `pumice.cli.x.command`, imported when it is used."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 finished, but some of it failed (a model of a batch, a check of the doctor); "
    "2 bad input, told in one sentence; 130 interrupted."
)

_WRITE_FAILURES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
_ENDING = (signal.SIGINT, signal.SIGTERM)
_ALARM = getattr(signal, "SIGALRM", None)
"""None on systems that have no such signal."""
_RAISED_AGAIN = 1.0
"""Seconds after which a signal is raised again in a run that has not ended."""
_PATH_FAILURES = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR})


class Application(click.Group):
    """A click group whose commands are imported on use, and whose errors are sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(name for name in _plugin_commands() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command = importlib.import_module(f"pumice.cli.{cmd_name}").command
        elif cmd_name in (provided := _plugin_commands()):
            command = provided[cmd_name].record.load()
        else:
            return None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"there is no command '{name}'{nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit with 1
            ctx.exit(_reader_went_away())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        extra = {n: p for n, p in _plugin_commands().items() if n not in COMMANDS}
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if extra:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(n, f"{p.record.summary} [{p.origin.distribution}]") for n, p in extra.items()])

    def main(  # type: ignore[override]  # click declares two overloads, this is both
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run; unless `standalone_mode` is off, exit with the code that the contract gives."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _exit_after(lambda: super(Application, self).main(args, standalone_mode=False, **extra))


def _exit_after(run: Callable[[], Any]) -> NoReturn:
    """Run, say what went wrong, exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name of any bytes can be shown anywhere
    try:
        with _unwinding():
            code = run()
            sys.stdout.flush()
    except _Ended as ended:
        code = _fail(f"{ended}; nothing was left half written", 128 + ended.signal)
    except PumiceError as error:
        code = _fail(str(error), error.exit_code)
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        code = _fail(f"{error.format_message().rstrip('.')}{where}", 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted; nothing was left half written", 130)
    except BrokenPipeError:
        code = _reader_went_away()
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        code = _fail(f"the memory of this machine does not suffice{why}; use smaller data, or a larger machine", 2)
    except OSError as error:
        code = _fail(_sentence(error), 2)
        _forget_unwritten_output()
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: OSError) -> str:
    """What a person can do about an error of the operating system; any other is a defect of pumice and goes on.

    Raises:
        OSError: the error itself.
    """
    reason = (error.strerror or str(error)).lower()
    if error.errno in _PATH_FAILURES and error.filename:
        return f"cannot use '{error.filename}': {reason}; check the path and its permissions"
    if error.errno not in _WRITE_FAILURES:
        raise error
    where = f" to '{error.filename}'" if error.filename else ""
    return f"cannot write{where}: {reason}; free some space or choose another place"


def _fail(sentence: str, code: int) -> int:
    print(f"pumice: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201 - the command line speaks here
    return code


def _reader_went_away() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _forget_unwritten_output() -> None:
    """Standard output cannot take what is buffered (a full disk): the interpreter must not try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"pumice: warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


class _Ended(Exception):
    """A signal has ended the run, and everything has been unwound."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.signal = number


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """SIGINT and SIGTERM unwind the block, so that temporary files go away.

    What a signal raises may be swallowed, or turned into another error, by a library that is just being imported. So it
    is raised again until the block has ended, and the signal decides what is said then. Elsewhere than in the main
    thread, where no handler can be set, signals do what they did.

    Raises:
        _Ended: a signal came and the block did not come to its own end.
    """
    came: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> NoReturn:
        if number in _ENDING:
            came.append(number)
        if _ALARM is not None:
            signal.setitimer(signal.ITIMER_REAL, _RAISED_AGAIN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watched = (*_ENDING, *([] if _ALARM is None else [_ALARM]))
    previous = {number: signal.signal(number, unwind) for number in watched}
    try:
        yield
    except BaseException as error:
        if not came:
            raise
        raise _Ended(came[0]) from error
    finally:
        if _ALARM is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _plugin_commands() -> Mapping[str, Any]:
    from pumice.registry import registry

    return registry().commands


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pumice import __version__

        click.echo(f"pumice {__version__}")
        ctx.exit()


@click.group(
    cls=Application,
    name="pumice",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def application() -> None:
    """Make trained ONNX networks small and fast, and prove it.

    The main job is one command:  pumice compress model.onnx --data samples/ -o small.onnx
    """
