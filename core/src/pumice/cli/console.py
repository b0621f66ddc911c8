"""What a person sees: answers on standard output, everything else on standard error, and progress with the time left.

On a terminal a task that lasts longer than a second shows as a bar; elsewhere as a plain line every few seconds and one
when it ends. `--quiet` silences both; `--log` also appends every line, with the time, to a file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from pumice.errors import PumiceError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as Bars, TaskID

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE = 1.0
"""Seconds after which a running task becomes visible."""
PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines of one task."""


@attrs.define(eq=False)
class Console:
    """One run's voice. It is also a `pumice.progress.Progress`."""

    as_json: bool = False
    quiet: bool = False
    log: Path | None = None
    _bars: Bars | None = None
    _open_tasks: int = 0

    def __attrs_post_init__(self) -> None:
        """A log that cannot be kept is told before the work, and no other file is taken for one."""
        if self.log is None:
            return
        require_writable(self.log)
        if self.log.exists() and _is_binary(self.log):
            raise PumiceError(f"'{self.log}' is no text file: choose another name for the log")

    # --- answers ------------------------------------------------------------------------------------------------------

    def answer(self, text: str = "", data: Any = None) -> None:
        """The result: `data` as JSON on standard output if asked for, else `text`, unless quiet."""
        if self.as_json:
            click.echo(json.dumps(data, indent=2, sort_keys=False, default=plain, allow_nan=False))
        elif not self.quiet:
            click.echo(text)
        self.record(text)

    def show(self, *renderables: RenderableType) -> None:
        """Tables and the like on standard output (never with `--json` or `--quiet`)."""
        if self.as_json or self.quiet:
            return
        from rich.console import Console as Rich

        rich = Rich(file=sys.stdout, soft_wrap=False, highlight=False)
        if not rich.is_terminal:
            rich.width = 120
        for renderable in renderables:
            rich.print(renderable)

    def tell(self, line: str) -> None:
        """A line about what goes on, on standard error."""
        if not self.quiet:
            click.echo(line, err=True)
        self.record(line)

    def record(self, line: str) -> None:
        """A line of the log file."""
        if self.log is None or not line:
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(f"{stamp} {part}\n" for part in line.splitlines())
        except OSError as error:
            raise cannot_write(self.log, error) from None

    # --- progress -----------------------------------------------------------------------------------------------------

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """A task of `total` units; the value is `advance(units=1)`."""
        began = time.perf_counter()
        show = self._bar if not self.quiet and sys.stderr.isatty() else self._lines
        with show(label, total, began) as advance:
            yield advance
        spent = time.perf_counter() - began
        if spent >= PATIENCE:
            line = f"{label}: done in {duration(spent)}"
            self.tell(line) if self._bars is None else self.record(line)

    @contextmanager
    def _lines(self, label: str, total: int | None, began: float) -> Iterator[Callable[..., None]]:
        done, spoken = 0, began

        def advance(units: int = 1) -> None:
            nonlocal done, spoken
            done += units
            now = time.perf_counter()
            if now - spoken >= PLAIN_INTERVAL:
                spoken = now
                self.tell(f"{label}: {_position(done, total, now - began)}")

        yield advance

    @contextmanager
    def _bar(self, label: str, total: int | None, began: float) -> Iterator[Callable[..., None]]:
        """A bar that appears once the task has lasted a second; nested tasks stack below it."""
        done = 0
        task: TaskID | None = None
        self._open_tasks += 1

        def advance(units: int = 1) -> None:
            nonlocal done, task
            done += units
            if task is None and time.perf_counter() - began >= PATIENCE:
                task = self._live().add_task(label, total=total, left="")
            if task is not None:
                left = _left(done, total, time.perf_counter() - began)
                self._live().update(task, completed=done, left=left)

        try:
            yield advance
        finally:
            self._open_tasks -= 1
            if task is not None:
                self._live().remove_task(task)
            if self._open_tasks == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _live(self) -> Bars:
        if self._bars is None:
            from rich import progress as rich
            from rich.console import Console as Rich

            self._bars = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TextColumn("{task.fields[left]}"),
                console=Rich(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self._bars


def _position(done: int, total: int | None, spent: float) -> str:
    if not total or not done:
        return f"{done} done"
    return f"{done} of {total} ({100 * done // total} %), {_left(done, total, spent)}"


def _left(done: int, total: int | None, spent: float) -> str:
    """The time that the rest takes if it goes on as so far."""
    return f"{duration(spent / done * max(total - done, 0))} left" if total and done else ""


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def quantity(count: float, unit: str = "B") -> str:
    """A number of bytes (or other units) with three significant digits and a decimal prefix: `1.24 MB`."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}{unit}".rstrip()
        count /= 1000
    return f"{count:.3g} T{unit}"


def plain(value: Any) -> Any:
    """What JSON lacks: NumPy numbers and arrays, paths, tuples of records."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if attrs.has(type(value)):
        return attrs.asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def cannot_write(path: Path, error: OSError) -> PumiceError:
    """The sentence for an output that cannot be written."""
    reason = (error.strerror or str(error)).lower()
    return PumiceError(f"cannot write '{path}': {reason}; choose another place, or make room")


def require_writable(path: Path) -> None:
    """Refuse, before any work, an output that cannot be written.

    Raises:
        PumiceError: says why not.
    """
    if path.is_dir():
        raise PumiceError(f"cannot write '{path}': it is a folder; give the name of a file in it")
    folder = path.parent if path.parent.is_dir() and not path.is_symlink() else path.resolve().parent
    if not folder.is_dir():
        raise PumiceError(f"cannot write '{path}': there is no folder '{folder}'; create it first")
    if path.exists() and not path.is_file():
        raise PumiceError(f"cannot write '{path}': it is not an ordinary file; choose another name")
    probe = path.with_name(f".{path.name}.pumice-probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return any(byte < 32 and byte not in b"\t\n\r\x1b" for byte in file.read(1024))


def output_options(command: F) -> F:
    """`--json`, `--quiet`, `--log`: what every command that computes offers."""
    for option in (
        click.option(
            "--log",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Append what happens, with times, to this file.",
        ),
        click.option("--quiet", "-q", is_flag=True, help="Only errors, nothing else."),
        click.option("--json", "as_json", is_flag=True, help="The answer as one JSON document on standard output."),
    ):
        command = option(command)
    return command
