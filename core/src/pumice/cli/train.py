"""`pumice train`: a model in, the same model trained, with its account. The flags are the knobs of the `train` step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from pumice.cli.compress import account_json, account_text, run
from pumice.cli.console import Console, F, output_options
from pumice.cli.knobs import KnobOption
from pumice.cli.specs import configured
from pumice.knobs import Knob, Several, Use
from pumice.recipe import Recipe
from pumice.registry import BASES
from pumice.steps import Step, Train

T = TypeVar("T", bound=Step)


def training_options(
    step: type[Step],
    apart_from: Sequence[str] = (),
    *,
    data: str = "Samples to train on.",
    output: str = "The trained model to write.",
) -> Callable[[F], F]:
    """What commands that train have in common, and a flag for every knob of their step, in their order.

    Args:
        step: what the command is for.
        apart_from: knobs that have no flag.
        data: help of `--data`.
        output: help of `--output`.
    """
    path = click.Path(path_type=Path)
    shared = (
        click.option("--runtime", help="Runtime to measure with. [default: the best installed]"),
        click.option("--metric", "metrics", multiple=True, help="May be repeated. [default: chosen by the data]"),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of whatever is random."
        ),
        click.option("--report", type=path, help="Write the account as one HTML page (JSON beside it)."),
        click.option("-o", "--output", required=True, type=path, help=output),
        click.option("--test", type=path, help="Other samples to measure on (else part of --data)."),
        click.option("--data", required=True, type=path, help=data),
    )

    def decorate(command: F) -> F:
        for name, knob in reversed(step.knobs().items()):
            if name not in apart_from:
                option = KnobOption(f"--{name.replace('_', '-')}", name, {"step": knob})
                vars(command).setdefault("__click_params__", []).append(option)  # where `click.option` puts its own
        for add in shared:
            command = add(command)
        return command

    return decorate


@click.command("train")
@click.argument("model", type=click.Path(path_type=Path))
@training_options(Train)
@output_options
def command(model: Path, **options: Any) -> None:
    """Train a model on labelled data.

    \b
    pumice train resnet.onnx --data samples/ -o trained.onnx --epochs 10 --lr 0.01
    pumice train resnet.onnx --data samples/ -o trained.onnx --snapshot state.npz   (run again to go on)

    Any ONNX model whose operators have gradients. A tenth of the data is held out to choose the best epoch by.
    """
    carry_out(step_from(Train, options), model, measure=False, **options)


def step_from(step: type[T], options: dict[str, Any]) -> T:
    """The step that the flags of its knobs describe; they are taken out of the options."""
    knobs = step.knobs()
    given = {name: options.pop(f"knob_{name}", None) for name in knobs}
    return step.configure({name: _value(knobs[name], text) for name, text in given.items() if text not in (None, ())})


def carry_out(step: Step, model: Path, *, as_json: bool, quiet: bool, log: Path | None, **options: Any) -> None:
    """Run one step on a model, and answer with the account; `options` go to `run`."""
    console = Console(as_json=as_json, quiet=quiet, log=log)
    result, files = run(console, model, Recipe([step]), **options)
    console.answer(account_text(result, files), account_json(result, files))


def _value(knob: Knob, text: Any) -> Any:
    """A knob's value from the text (or texts) of its flag."""
    if isinstance(knob.domain, Several):
        return tuple(configured(BASES[knob.domain.kind], each) for each in text)
    if isinstance(knob.domain, Use):
        return configured(BASES[knob.domain.kind], text)
    if isinstance(text, tuple):
        return tuple(part for each in text for part in knob.parse(each))
    return knob.parse(text)
