"""`pumice recipe`: an example with every knob explained, or the check of a file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pumice.cli.console import Console, output_options
from pumice.errors import PumiceError


@click.command("recipe")
@click.option("--example", is_flag=True, help="Write a recipe with every knob of every step and quantizer explained.")
@click.option(
    "--check", type=click.Path(path_type=Path), help="Read a recipe and show what it means, defaults filled in."
)
@output_options
def command(example: bool, check: Path | None, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Write an example recipe, or check one.

    \b
    pumice recipe --example > recipe.toml
    pumice recipe --check recipe.toml
    """
    from pumice.recipe import Recipe

    console = Console(as_json=as_json, quiet=quiet, log=log)
    if example == (check is not None):
        raise PumiceError("say what to do: `pumice recipe --example` or `pumice recipe --check FILE`")
    if check is not None:
        recipe = Recipe.read(check)
        console.answer(recipe.to_toml().rstrip(), recipe.to_dict())
    else:
        text = example_recipe()
        console.answer(text.rstrip(), Recipe.from_toml(text).to_dict())


def example_recipe() -> str:
    """TOML that reads back as the default recipe, every knob with its meaning; what else there is, as comments."""
    from pumice.knobs import Several, Use
    from pumice.recipe import Recipe
    from pumice.registry import registry
    from pumice.steps import STEPS, default_quantizer
    from pumice.strategy import Quantizer, Strategy

    def lines(strategy: type[Strategy], prefix: str = "") -> list[str]:
        return [
            f"{prefix}{knob.name} = {json.dumps(knob.default)}  # {knob.help}; {knob.domain}"
            for knob in strategy.knobs().values()
            if not isinstance(knob.domain, Use)
        ]

    found = ["# A pumice recipe: steps in the order in which they run. What is left out has its default."]
    usual = {step.name for step in Recipe.default().steps}
    for step in sorted(STEPS.values(), key=lambda step: step.name not in usual):
        mark = "" if step.name in usual else "# "
        found += ["", f"{mark}[[step]]", f'{mark}use = "{step.name}"  # {step.summary()}', *lines(step, mark)]
        for knob in step.knobs().values():
            if not isinstance(knob.domain, Use) or not registry().strategies(knob.domain.kind):
                continue
            chosen = default_quantizer().name if knob.domain.kind == Quantizer.kind else None
            for name, strategy in registry().strategies(knob.domain.kind).items():
                comment = "" if name == chosen else "# "
                table = f"[[step.{knob.name}]]" if isinstance(knob.domain, Several) else f"[step.{knob.name}]"
                found += ["", f"{comment}{table}  # {strategy.summary()}", f'{comment}name = "{name}"']
                found += lines(strategy, comment)
    return "\n".join(found) + "\n"
