"""`pumice auto`: a model in, the best recipe that a search finds out, with the model it makes and both accounts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pumice.cli.compress import account_json, account_text, require_outputs, stored, written
from pumice.cli.console import Console, output_options
from pumice.cli.specs import configured
from pumice.cli.train import step_from, training_options
from pumice.steps import Auto
from pumice.strategy import Metric, Runtime

if TYPE_CHECKING:
    from pumice.pipeline import Result
    from pumice.search import Found


@click.command("auto")
@click.argument("model", type=click.Path(path_type=Path))
@training_options(Auto, data="Samples that calibrate, train and measure.", output="The model to write.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of one inference when timing. [default: 1]")
@click.option("--write-recipe", type=click.Path(path_type=Path), help="Write the winner's recipe (TOML).")
@output_options
@click.pass_context
def command(ctx: click.Context, /, model: Path, report: Path | None, write_recipe: Path | None, **options: Any) -> None:
    """Search for the best recipe from whatever is installed, and compress with it.

    \b
    pumice auto resnet.onnx --data samples/ --max-drop 1% -o small.onnx
    pumice auto resnet.onnx --data samples/ --size 10x --budget 30min --study search/ -o small.onnx

    Recipes are tried within the budget and measured; the best are measured again on samples that the search did not
    see. If none keeps the limits, no model is written: the nearest is named, and the exit code is 1. With --study, a
    search that was stopped goes on where it was.
    """
    from pumice.report import report_files, write_search

    console = Console(**{name: options.pop(name) for name in ("as_json", "quiet", "log")})
    limits = step_from(Auto, options)
    kinds = "the report", "the account beside the report"
    pages = {} if report is None else dict(zip(kinds, report_files(report), strict=True))
    recipes = {} if write_recipe is None else {"the recipe": write_recipe}
    inputs = {"the model": model, "the data": options["data"], "the test data": options["test"]}
    require_outputs({"the model": options["output"], **recipes, **pages}, inputs)
    found = _found(model, limits, console, options)
    if found.recipe is None:
        if report is not None:
            write_search(found, model.name, report)
        text = "\n".join([found.summary(), *written(list(pages.values()))])
        console.answer(text, {"search": found.to_json(), "files": [str(page) for page in pages.values()]})
        ctx.exit(1)
    result = found.account(console)
    files = stored(result, options["output"], report, search=found)
    if write_recipe is not None:
        found.recipe.write(write_recipe, heading=_again(result, model, write_recipe, options))
        files.append(write_recipe)
    text = f"{found.summary()}\n{account_text(result, files)}"
    console.answer(text, {"search": found.to_json(), **account_json(result, files)})


def _again(result: Result, model: Path, recipe: Path, options: Mapping[str, Any]) -> str:
    """The command line that runs the winner's recipe again."""
    paths = {"model": model, "recipe": recipe, **{name: options[name] for name in ("data", "test", "output")}}
    return result.command(**{name: shlex.quote(str(path)) for name, path in paths.items() if path is not None})


def _found(model: Path, limits: Auto, console: Console, options: Mapping[str, Any]) -> Found:
    from pumice.search import search

    return search(
        model,
        options["data"],
        limits,
        test=options["test"],
        metrics=[configured(Metric, metric) for metric in options["metrics"]] or None,
        runtime=None if options["runtime"] is None else configured(Runtime, options["runtime"]),
        threads=options["threads"],
        seed=options["seed"],
        progress=console,
    )
