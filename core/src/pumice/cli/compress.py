"""`pumice compress`: one model in, a smaller one out, with its account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from pumice.cli.console import Console, F, cannot_write, output_options, quantity, require_writable
from pumice.cli.knobs import KnobCommand, recipe_from
from pumice.errors import PumiceError

if TYPE_CHECKING:
    from pumice.pipeline import Result
    from pumice.recipe import Recipe
    from pumice.search import Found
    from pumice.strategy import Exporter


def run_options(command: F) -> F:
    """What `compress` and `batch` have in common; they reach `run` by these names."""
    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--measure/--no-measure", default=True, show_default=True, help="Measure latency and peak memory."
        ),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of whatever is random."
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), help="Threads of one inference when measuring. [default: 1]"
        ),
        click.option(
            "--exporter",
            default="qdq",
            show_default=True,
            help="Form of the file that is written; NAME or NAME:knob=value,...",
        ),
        click.option(
            "--runtime",
            help="Runtime to calibrate and measure with; NAME or NAME:knob=value,... [default: the best installed]",
        ),
        click.option(
            "--metric",
            "metrics",
            multiple=True,
            help="How to measure accuracy: NAME or NAME:knob=value,...; may be repeated. [default: chosen by the data]",
        ),
        click.option("--recipe", type=path, help="A recipe (TOML) instead of the flags below."),
        click.option("--test", type=path, help="Other samples to measure on (else part of --data)."),
        click.option("--data", type=path, help="Samples: a folder, .npz or any form an installed reader knows."),
    ):
        command = option(command)
    return command


@click.command("compress", cls=KnobCommand)
@click.argument("model", type=click.Path(path_type=Path))
@run_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The compressed model to write.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the account as one HTML page (JSON beside it).")
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    output: Path,
    report: Path | None,
    recipe: Path | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Compress one model and account for what was gained and lost.

    \b
    pumice compress resnet.onnx --data samples/ -o small.onnx --report report.html
    pumice compress resnet.onnx --data samples/ -o small.onnx --calibrator entropy --max-drop 0.005

    Accuracy is measured on --test, or on the part of --data that did not calibrate. OUTPUT is written only when
    everything went well; a run that is killed leaves the old file whole.
    """
    console = Console(as_json=as_json, quiet=quiet, log=log)
    sources = {"the recipe": recipe}
    result, files = run(console, model, recipe_from(ctx, recipe), output, report=report, sources=sources, **options)
    console.answer(account_text(result, files), account_json(result, files))


def run(
    console: Console,
    model: Path,
    recipe: Recipe,
    output: Path,
    *,
    report: Path | None = None,
    exporter: str = "qdq",
    metrics: Sequence[str] = (),
    runtime: str | None = None,
    sources: Mapping[str, Path | None] = MappingProxyType({}),
    **options: Any,
) -> tuple[Result, list[Path]]:
    """Compress, write the model and, if wanted, the report; returns the result and every file written.

    `sources` are other files that the run has read, which no output may replace; `options` go to `pumice.compress`.

    Raises:
        PumiceError: bad input, or an output that cannot be written (found out before the work begins where possible).
    """
    from pumice import compress
    from pumice.cli.specs import configured
    from pumice.report import report_files
    from pumice.strategy import Exporter, Metric, Runtime

    writer = configured(Exporter, exporter)
    if (reason := writer.available()) is not None:
        raise PumiceError(f"exporter '{writer.name}' cannot write here: {reason}")
    chosen = [configured(Metric, metric) for metric in metrics] or None
    engine = None if runtime is None else configured(Runtime, runtime)
    outputs = {"the model": output}
    if report is not None:
        outputs["the report"], outputs["the account beside the report"] = report_files(report)
    if console.log is not None:
        outputs["the log"] = console.log
    inputs = {"the model": model, "the data": options.get("data"), "the test data": options.get("test"), **sources}
    require_outputs(outputs, inputs)
    result = compress(model, recipe=recipe, metrics=chosen, runtime=engine, progress=console, **options)
    return result, stored(result, output, report, writer)


def stored(
    result: Result, output: Path, report: Path | None, exporter: str | Exporter = "qdq", search: Found | None = None
) -> list[Path]:
    """Write the model and, if wanted, the report; returns every file written.

    Raises:
        PumiceError: one cannot be written.
    """
    from pumice.report import report_files, write_report

    try:
        files = result.save(output, exporter)
    except OSError as error:  # an exporter of a plugin
        raise cannot_write(output, error) from None
    if report is None:
        return files
    try:
        write_report(result, report, search)
    except PumiceError as error:
        raise PumiceError(f"{error}; the model itself is in '{output}'") from error
    return [*files, *report_files(report)]


def require_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path | None]) -> None:
    """Refuse, before any work, outputs that cannot be written, or that would replace an input or each other.

    Args:
        outputs: path by what is written there.
        inputs: path by what is read there; None where nothing is.

    Raises:
        PumiceError: says which, and why.
    """
    taken: dict[Path, str] = {}
    for what, path in outputs.items():
        for source, given in inputs.items():
            if given is not None and given.exists() and path.exists() and path.samefile(given):
                raise PumiceError(
                    f"the output '{path}' is {source} itself; choose another name, so that the original is kept"
                )
        require_writable(path)
        other = taken.setdefault(path.resolve(), what)
        if other != what:
            raise PumiceError(f"{other} and {what} would both be written to '{path}': choose another name for one")


def account_text(result: Result, files: Sequence[Path]) -> str:
    """The account in a few lines, what to try next, and what was written."""
    from pumice.diagnose import recommendations

    also = [note for note in result.measurements.notes if note not in result.notes]
    advice = [f"to try: {sentence}" for sentence in recommendations(result.layers)]
    return "\n".join([result.summary(), *also, *advice, *written(files)])


def written(files: Sequence[Path]) -> list[str]:
    """A line for every file."""
    return [f"wrote {path} ({quantity(path.stat().st_size)})" for path in files]


def account_json(result: Result, files: Sequence[Path]) -> dict[str, Any]:
    """The same for machines."""
    from pumice.diagnose import recommendations

    return {
        **result.to_json(),
        "recommendations": recommendations(result.layers),
        "files": [str(path) for path in files],
    }
