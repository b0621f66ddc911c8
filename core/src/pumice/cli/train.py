"""`pumice train`: a model in, the same model trained, with its account. The flags are the knobs of the `train` step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pumice.cli.compress import account_json, account_text, run
from pumice.cli.console import Console, F, output_options
from pumice.cli.knobs import KnobOption
from pumice.cli.specs import configured
from pumice.recipe import Recipe
from pumice.steps import Train
from pumice.strategy import Loss, Use


def knob_flags(command: F) -> F:
    """A flag for every knob of the step, in their order."""
    for name, knob in reversed(Train.knobs().items()):
        flag = f"--{name.replace('_', '-')}"
        option = KnobOption(flag, name, {"step": knob})
        vars(command).setdefault("__click_params__", []).append(option)  # where `click.option` puts what it makes
    return command


@click.command("train")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Labelled samples to train on.")
@click.option("--test", type=click.Path(path_type=Path), help="Other samples to measure on (else part of --data).")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The trained model to write.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the account as one HTML page (JSON beside it).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of whatever is random.")
@click.option("--metric", "metrics", multiple=True, help="May be repeated. [default: chosen by outputs and labels]")
@click.option("--runtime", help="Runtime to measure with. [default: the best installed]")
@knob_flags
@output_options
def command(
    model: Path,
    output: Path,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Train a model on labelled data.

    \b
    pumice train resnet.onnx --data samples/ -o trained.onnx --epochs 10 --lr 0.01
    pumice train resnet.onnx --data samples/ -o trained.onnx --snapshot state.npz   (run again to go on)

    Any ONNX model whose operators have gradients. A tenth of the data is held out to choose the best epoch by.
    """
    console = Console(as_json=as_json, quiet=quiet, log=log)
    knobs = Train.knobs()
    given = {name: options.pop(f"knob_{name}") for name in knobs}
    step = Train.configure({name: _value(name, text) for name, text in given.items() if text not in (None, ())})
    result, files = run(console, model, Recipe([step]), output, report=report, measure=False, **options)
    console.answer(account_text(result, files), account_json(result, files))


def _value(name: str, text: Any) -> Any:
    """A knob's value from the text (or texts) of its flag."""
    knob = Train.knobs()[name]
    if isinstance(knob.domain, Use):
        return configured(Loss, text)
    if isinstance(text, tuple):
        return tuple(part for each in text for part in knob.parse(each))
    return knob.parse(text)
