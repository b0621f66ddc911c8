"""`pumice evaluate`: the accuracy of one model on data, with its interval."""

from __future__ import annotations

from pathlib import Path

import click

from pumice.cli.console import Console, output_options


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Samples, with labels or without.")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="The original model, for metrics that compare with it."
)
@click.option("--metric", "metrics", multiple=True, help="May be repeated. [default: chosen by outputs and labels]")
@click.option("--runtime", help="Runtime to use. [default: the best installed]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of one inference. [default: the runtime's]")
@click.option("--samples", type=click.IntRange(1), help="Use at most this many samples, evenly spread.")
@output_options
def command(
    model: Path,
    data: Path,
    reference: Path | None,
    metrics: tuple[str, ...],
    runtime: str | None,
    threads: int | None,
    samples: int | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Measure the accuracy of a model on data.

    \b
    pumice evaluate small.onnx --data samples/test
    pumice evaluate small.onnx --data samples/ --reference resnet.onnx --metric agreement
    """
    from pumice.cli.specs import configured
    from pumice.measure import evaluate
    from pumice.strategy import Metric, Runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    found = evaluate(
        model,
        data,
        [configured(Metric, metric) for metric in metrics] or None,
        reference=reference,
        runtime=None if runtime is None else configured(Runtime, runtime),
        threads=threads,
        limit=samples,
        progress=console,
    )
    lines = [*map(str, found.scores.values()), *found.notes, f"ran on {found.description}"]
    console.answer("\n".join(lines), {"model": str(model), "data": str(data), **found.to_json()})
