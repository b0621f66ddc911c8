"""`pumice demo`: the whole way on the example model, in one command."""

from __future__ import annotations

from pathlib import Path

import click

from pumice.cli.compress import account_json, account_text, run
from pumice.cli.console import Console, cannot_write, output_options
from pumice.errors import PumiceError

EXAMPLE = Path("examples/fashion_resnet")


@click.command("demo")
@click.argument("example", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="Folder for the model and the report.",
)
@output_options
def command(example: Path | None, output: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Compress the example model and show the account.

    EXAMPLE is a folder with one ONNX model and its data (a folder `data`, or the only other folder or .npz in it);
    without it, examples/fashion_resnet is looked for from the current directory upwards.
    """
    from pumice.recipe import Recipe

    console = Console(as_json=as_json, quiet=quiet, log=log)
    folder = example or _find(Path.cwd())
    model, data = model_and_data(folder)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output, error) from None
    small = output / f"{model.stem}.int8.onnx"
    page = output / f"{model.stem}.html"
    recipe = folder / "recipe.toml"
    chosen = Recipe.read(recipe) if recipe.is_file() else Recipe.default()
    console.tell(f"pumice compress {model} --data {data} -o {small} --report {page}")
    result, files = run(console, model, chosen, small, report=page, data=data)
    console.answer(account_text(result, files), account_json(result, files))


def model_and_data(folder: Path) -> tuple[Path, Path]:
    """The one model and the data of an example folder.

    Raises:
        PumiceError: the folder does not exist, or does not hold one model and its data.
    """
    if not folder.is_dir():
        raise PumiceError(f"there is no example folder '{folder}': give the path of one")
    models = sorted(folder.glob("*.onnx"))
    if len(models) != 1:
        raise PumiceError(f"the example folder '{folder}' must hold one .onnx file, not {len(models)}")
    if (folder / "data").exists():
        return models[0], folder / "data"
    others = sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix == ".npz")
    if len(others) != 1:
        raise PumiceError(f"the example folder '{folder}' must hold its samples in a folder `data`")
    return models[0], others[0]


def _find(start: Path) -> Path:
    for base in (start, *start.parents):
        if (base / EXAMPLE).is_dir():
            return EXAMPLE if base == start else base / EXAMPLE
    raise PumiceError(f"there is no '{EXAMPLE}' here or above: run it in a checkout of pumice, or give a folder")
