"""`pumice compare`: two models against each other in one process, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pumice.cli.console import Console, output_options, quantity

if TYPE_CHECKING:
    from rich.table import Table

    from pumice.diagnose import LayerError


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Samples to measure accuracy and latency on.")
@click.option("--metric", "metrics", multiple=True, help="May be repeated. [default: chosen by outputs and labels]")
@click.option("--runtime", help="Runtime to measure with. [default: the best installed]")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of one inference.")
@click.option("--layers", is_flag=True, help="Also the error of every layer, for a model made by `pumice compress`.")
@output_options
def command(
    before: Path,
    after: Path,
    data: Path | None,
    metrics: tuple[str, ...],
    runtime: str | None,
    threads: int,
    layers: bool,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Measure two models against each other, interleaved.

    \b
    pumice compare resnet.onnx small.onnx --data samples/test --layers
    """
    import attrs

    from pumice.cli.specs import configured
    from pumice.data import open_dataset
    from pumice.diagnose import layer_errors, recommendations
    from pumice.measure import choose_metrics, compare, pick_runtime
    from pumice.model import load
    from pumice.strategy import Metric, Runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    original = load(before)
    changed = load(after)
    dataset = None if data is None else open_dataset(data, original)
    engine = pick_runtime(None if runtime is None else configured(Runtime, runtime))
    chosen = choose_metrics(
        original, dataset, [configured(Metric, metric) for metric in metrics] or None, runtime=engine
    )
    found = compare(before, after, dataset, runtime=engine, threads=threads, metrics=chosen.metrics, progress=console)
    account = {"files": {"before": str(before), "after": str(after)}, **found.to_json()}
    lines = [found.headline(), *dict.fromkeys([*chosen.notes, *found.notes])]
    if layers:
        errors = layer_errors(original, changed, dataset, engine, progress=console)
        advice = recommendations(errors)
        account |= {"layers": [attrs.asdict(error) for error in errors], "recommendations": advice}
        console.show(_table(errors))
        lines += advice
    console.answer("\n".join(lines), account)


def _table(errors: Sequence[LayerError]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "operator", title="error of every layer, worst first", title_justify="left")
    for name in ("output dB", "weights dB", "bytes", "were", "in range"):
        table.add_column(name, justify="right", no_wrap=True)
    for error in errors:
        table.add_row(
            escape(error.node),
            error.op,
            _decibels(error.output_sqnr_db),
            _decibels(error.weight_sqnr_db),
            quantity(error.weight_bytes_after),
            quantity(error.weight_bytes_before),
            "" if error.coverage is None else f"{error.coverage:.2%}",
        )
    return table


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
