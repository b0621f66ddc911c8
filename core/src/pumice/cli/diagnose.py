"""`pumice diagnose`: where a quantized model lost precision, why, and what would help."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pumice.cli.console import Console, output_options, quantity, require_writable

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

    from pumice.data import Dataset
    from pumice.diagnose import Diagnosis, LayerError
    from pumice.strategy import Runtime

FIELDS = (
    "node", "op", "alone_sqnr_db", "output_sqnr_db", "weight_sqnr_db", "output_mse", "output_cosine", "saturated",
    "unused", "outliers_3sigma", "weight_bytes_before", "weight_bytes_after",
)  # fmt: skip
"""Columns of the CSV."""


@click.command("diagnose")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="What calibrated it, or data like it.")
@click.option("--samples", type=click.IntRange(1), default=16, show_default=True, help="Samples for errors of layers.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Also write the layers to this file.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write a page with pictures.")
@click.option("--apply", "best", type=click.Path(path_type=Path), help="Try what is suggested, write what is better.")
@click.option("--quantizer", default="int8", show_default=True, help="What --apply quantizes with.")
@click.option("--runtime", help="Runtime to run the models on. [default: the best installed]")
@output_options
def command(
    original: Path,
    quantized: Path,
    data: Path,
    samples: int,
    table: Path | None,
    page: Path | None,
    best: Path | None,
    quantizer: str,
    runtime: str | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Tell where a quantized model lost precision, why, and what would help.

    \b
    pumice diagnose resnet.onnx resnet.int8.onnx --data samples/ --html diagnosis.html
    """
    from pumice.cli.specs import configured
    from pumice.data import open_dataset
    from pumice.diagnose import diagnose
    from pumice.measure import pick_runtime
    from pumice.model import load
    from pumice.report import write_texts
    from pumice.report.diagnosis import render
    from pumice.strategy import Runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    for path in filter(None, (table, page, best)):
        require_writable(path)
    before, after = load(original), load(quantized)
    dataset = open_dataset(data, before)
    engine = pick_runtime(None if runtime is None else configured(Runtime, runtime))
    found = diagnose(before, after, dataset, engine, progress=console, samples=samples)
    console.show(_table(found.layers))
    account: dict[str, Any] = {"files": {"original": str(original), "quantized": str(quantized)}, **found.to_json()}
    lines = found.sentences()
    if table is not None:
        write_texts({table: _csv(found.layers)}, f"the table '{table}'")
    if page is not None:
        text = render(found, quantized.name, [str(node.name) for node in after.graph])
        write_texts({page: text}, f"the page '{page}'")
    if best is not None:
        trials = _apply(before, found, dataset, engine, quantizer, best)
        account["trials"] = trials
        lines += [trial["sentence"] for trial in trials]
    console.answer("\n".join(lines), account)


def _apply(
    original: ir.Model, found: Diagnosis, dataset: Dataset, runtime: Runtime, quantizer: str, target: Path
) -> list[dict[str, Any]]:
    """Try every remedy; the best is written if it is better than what was diagnosed."""
    from pumice.diagnose import tried
    from pumice.model import save

    trials = tried(original, found.remedies, dataset, runtime, quantizer)
    account = []
    for number, trial in enumerate(trials):
        kept = number == 0 and trial.model is not None and trial.noise < found.noise
        if kept and trial.model is not None:
            save(trial.model, target)
        outcome = trial.failure or f"noise {trial.noise:.3g}, it was {found.noise:.3g}"
        verdict = f"kept, written to {target}" if kept else "not kept"
        account.append({"sentence": f"Tried: {trial.remedy.sentence}: {outcome}; {verdict}.", "kept": kept})
    return account


def _csv(layers: Sequence[LayerError]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([getattr(layer, field) for field in FIELDS] for layer in layers)
    return text.getvalue()


def _table(layers: Sequence[LayerError]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "operator", title="error of every layer, worst first", title_justify="left")
    for name in ("alone dB", "output dB", "weights dB", "cosine", "clipped", "unused", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(
            escape(layer.node),
            layer.op,
            _number(layer.alone_sqnr_db, ".1f"),
            _number(layer.output_sqnr_db, ".1f"),
            _number(layer.weight_sqnr_db, ".1f"),
            _number(layer.output_cosine, ".5f"),
            _number(layer.saturated, ".2%"),
            _number(layer.unused, ".0%"),
            quantity(layer.weight_bytes_after),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
