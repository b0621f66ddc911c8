"""`pumice compare`: two models against each other in one process, interleaved."""

from __future__ import annotations

from pathlib import Path

import click

from pumice.cli.console import Console, output_options


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Samples to measure accuracy and latency on.")
@click.option("--metric", "metrics", multiple=True, help="May be repeated. [default: chosen by outputs and labels]")
@click.option("--runtime", help="Runtime to measure with. [default: the best installed]")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of one inference.")
@output_options
def command(
    before: Path,
    after: Path,
    data: Path | None,
    metrics: tuple[str, ...],
    runtime: str | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Measure two models against each other, interleaved.

    \b
    pumice compare resnet.onnx small.onnx --data samples/test
    """
    from pumice.data import open_dataset
    from pumice.measure import choose_metrics, compare
    from pumice.model import load
    from pumice.pipeline import pick_runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    original = load(before)
    load(after)
    dataset = None if data is None else open_dataset(data, original)
    chosen = choose_metrics(original, dataset, metrics or None)
    found = compare(
        before,
        after,
        dataset,
        runtime=pick_runtime(runtime),
        threads=threads,
        metrics=chosen.metrics,
        progress=console,
    )
    console.answer(
        "\n".join([found.headline(), *chosen.notes]),
        {"before": str(before), "after": str(after), **found.to_json()},
    )
