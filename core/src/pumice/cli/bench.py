"""`pumice bench`: how fast a model is on every runtime, with its memory and its slowest layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pumice.cli.console import Console, output_options, quantity

if TYPE_CHECKING:
    from rich.table import Table

    from pumice.measure.benchmark import Line
    from pumice.strategy import Runtime


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter("give whole numbers from 1 on, with commas between")
    return found


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    "runtimes",
    help="Runtimes, with commas between: NAME or NAME:knob=value. [default: the best installed]",
)
@click.option("--threads", default="1", show_default=True, callback=_numbers, help="Threads of one inference: 1,2")
@click.option("--batch", "batches", default="1", show_default=True, callback=_numbers, help="Samples at once: 1,8")
@click.option("--data", type=click.Path(path_type=Path), help="Samples to run on. [default: random input]")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=2.0, show_default=True, help="Time for a setting.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, too.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the latencies, as SVG.")
@output_options
def command(
    model: Path,
    runtimes: str | None,
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    data: Path | None,
    seconds: float,
    memory: bool,
    picture: Path | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Measure how fast a model is on every runtime.

    \b
    pumice bench small.onnx --runtime native,ort --threads 1,2 --batch 1,8
    """
    from pumice.cli.console import require_writable
    from pumice.data import open_dataset
    from pumice.measure.benchmark import benchmark
    from pumice.model import load
    from pumice.report.bars import bars

    console = Console(as_json=as_json, quiet=quiet, log=log)
    if picture is not None:
        require_writable(picture)
    loaded = load(model)  # a sentence where the file is no model
    dataset = None if data is None else open_dataset(data, loaded)
    lines, notes = benchmark(
        model, _configured(runtimes), threads=threads, batches=batches, data=dataset, seconds=seconds, memory=memory,
        progress=console,
    )  # fmt: skip
    if picture is not None:
        measured = [(line, line.latency) for line in lines if line.latency is not None]
        rows = [(_label(line), line.runtime, found.low, found.median, found.high) for line, found in measured]
        picture.write_text(bars(f"{model.name}: milliseconds of one inference", rows), "utf-8")
    console.show(_table(lines))
    console.show(_slowest(lines))
    account = {"model": str(model), "lines": [line.to_json() for line in lines], "notes": notes}
    console.answer("\n".join([*_sentences(lines), *notes]), account)


def _configured(text: str | None) -> list[Runtime]:
    """`native,ort:graph_optimization=basic`: a part that names a runtime begins a new one."""
    from pumice.cli.specs import configured
    from pumice.measure import pick_runtime
    from pumice.registry import registry
    from pumice.strategy import Runtime

    if text is None:
        return [pick_runtime()]
    known, found = registry().strategies("runtime"), list[str]()
    for part in text.split(","):
        if found and part.partition(":")[0] not in known and "=" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return [pick_runtime(configured(Runtime, spec)) for spec in found]


def _label(line: Line) -> str:
    return f"{line.runtime}, {line.threads} thread{'s' if line.threads > 1 else ''}, batch {line.batch}"


def _sentences(lines: Sequence[Line]) -> list[str]:
    told = [f"{_label(line)}: {line.failure}" for line in lines if line.failure]
    timed = [(line, line.latency) for line in lines if line.latency is not None]
    if len(timed) > 1:
        (first, base), (best, fastest) = timed[0], min(timed, key=lambda pair: pair[1].median / pair[0].batch)
        times = base.median / first.batch / (fastest.median / best.batch)
        told.append(f"fastest a sample: {_label(best)}, {times:.2f} times {_label(first)}")
    return told


def _table(lines: Sequence[Line]) -> Table:
    from rich.table import Table

    table = Table("runtime", title="latency of one inference, interleaved", title_justify="left")
    for name in ("threads", "batch", "ms", "quartiles", "samples/s", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        found = line.latency
        table.add_row(
            line.runtime,
            str(line.threads),
            str(line.batch),
            "" if found is None else f"{found.median:.3g}",
            "" if found is None else f"{found.low:.3g} to {found.high:.3g}",
            "" if found is None else f"{found.throughput(line.batch):.4g}",
            "" if line.memory is None else quantity(line.memory.model),
        )
    return table


def _slowest(lines: Sequence[Line]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("runtime", "node", "operator", title="slowest nodes, at the first setting", title_justify="left")
    for name in ("us", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    shown: set[str] = set()
    for line in lines:
        if line.layers and line.runtime not in shown:
            shown.add(line.runtime)
            for layer in line.layers:
                table.add_row(
                    line.runtime, escape(layer.node), layer.op, f"{layer.microseconds:.1f}", f"{layer.share:.1%}"
                )
    return table
