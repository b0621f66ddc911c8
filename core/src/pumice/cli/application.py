"""The root command: finds commands lazily, and turns whatever ends a run into a sentence and an exit code.

code 0    done
code 1    finished, but some of it failed: a model of a batch, a check of the doctor
code 2    bad input: one sentence on standard error
code 130  interrupted (143: terminated, 141: the reader of our output went away)
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, NoReturn, TextIO

import click

from pumice.errors import PumiceError, nearest

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "compress": "Compress one model and account for what was gained and lost.",
        "batch": "Compress many models; one that fails does not stop the rest.",
        "inspect": "Show what is in a model and what would be worth compressing.",
        "evaluate": "Measure the accuracy of a model on data.",
        "compare": "Measure two models against each other, interleaved.",
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
            previous = _handle_termination()
            try:
                _exit_after(lambda: super(Application, self).main(args, standalone_mode=False, **extra))
            finally:
                if previous is not None:
                    signal.signal(signal.SIGTERM, previous)


def _exit_after(run: Callable[[], Any]) -> NoReturn:
    """Run, say what went wrong, exit."""
    try:
        code = run()
        sys.stdout.flush()
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
    except OSError as error:
        if error.errno not in _WRITE_FAILURES:
            raise
        where = f" to '{error.filename}'" if error.filename else ""
        code = _fail(
            f"cannot write{where}: {(error.strerror or str(error)).lower()}; free some space or choose another place", 2
        )
        _forget_unwritten_output()
    sys.exit(code if isinstance(code, int) else 0)


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


def _handle_termination() -> Any:
    """SIGTERM unwinds like an interrupt, so that temporary files go away; None where no handler can be set."""

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + signum)

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        return None


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
