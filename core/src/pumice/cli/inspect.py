"""`pumice inspect`: what is in a model, where its bytes and its work are, what would be worth compressing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pumice.cli.console import Console, output_options, quantity

if TYPE_CHECKING:
    from pumice.diagnose import Analysis, NodeCost

ROWS = 12


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Samples: the shapes of the first are used, and it is timed."
)
@click.option("--runtime", help="Runtime to profile with. [default: the best installed]")
@output_options
def command(model: Path, data: Path | None, runtime: str | None, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Show what is in a model and what would be worth compressing."""
    from pumice.diagnose import analyse
    from pumice.model import load
    from pumice.pipeline import pick_runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    loaded = load(model)
    feeds = None if data is None else _first_sample(data, loaded)
    found = analyse(loaded, feeds, pick_runtime(runtime) if feeds is not None else None)
    if as_json:
        console.answer(data={"model": str(model), "file_bytes": model.stat().st_size, **found.to_json()})
    else:
        _show(console, model, found)


def _first_sample(data: Path, model: Any) -> dict[str, Any]:
    from pumice.data import open_dataset
    from pumice.errors import DataError

    for batch in open_dataset(data, model).batches(batch_size=1, limit=1):
        return dict(batch.feeds)
    raise DataError(f"'{data}' holds no sample: give at least one")


def _show(console: Console, path: Path, found: Analysis) -> None:
    from rich.markup import escape

    facts = {
        "file": f"{path} ({quantity(path.stat().st_size)})",
        "graph": f"{found.name or '(no name)'}, opset {found.opset}, IR version {found.ir_version}",
        "producer": found.producer or "unknown",
        "inputs": ", ".join(f"{name} {shape}" for name, shape in found.inputs.items()),
        "outputs": ", ".join(f"{name} {shape}" for name, shape in found.outputs.items()),
        "dynamic axes": ", ".join(found.dynamic_axes) or "none",
        "operators": ", ".join(f"{count} {op}" for op, count in found.operators.items()),
        "parameters": f"{found.parameters:,} in {quantity(found.weight_bytes)}"
        f" ({', '.join(f'{kind} {quantity(held)}' for kind, held in found.weight_types.items())})",
        "work": f"{quantity(found.macs, 'MAC')} a sample" + (f" ({found.assumed})" if found.assumed else ""),
    }
    for name, text in facts.items():
        console.show(f"[bold]{name:<13}[/bold]{escape(text)}")
    console.show("", _table(found))
    console.show("\n[bold]What would be worth compressing[/bold]")
    for sentence in found.advice or ("Nothing stands out: no large floating-point weights were found.",):
        console.show(f"- {escape(sentence)}")


def _table(found: Analysis) -> Any:
    """The heaviest nodes by time where it was measured, else by work and bytes."""
    from rich.markup import escape
    from rich.table import Table

    timed = any(cost.seconds is not None for cost in found.costs)
    spent = sum(cost.seconds or 0.0 for cost in found.costs)

    def weight(cost: NodeCost) -> float:
        if timed:
            return cost.seconds or 0.0
        return cost.macs / max(found.macs, 1) + cost.weight_bytes / max(found.weight_bytes, 1)

    order = sorted(found.costs, key=weight, reverse=True)[:ROWS]
    table = Table(title=f"heaviest {len(order)} of {len(found.costs)} nodes", title_justify="left")
    for name in ("node", "operator"):
        table.add_column(name, overflow="fold")
    for name in ("work", "share", "weights", "share", *(("time", "share") if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in order:
        cells = [
            *(escape(cost.node), cost.op),
            *(quantity(cost.macs, "MAC"), f"{cost.macs / max(found.macs, 1):.0%}"),
            *(quantity(cost.weight_bytes), f"{cost.weight_bytes / max(found.weight_bytes, 1):.0%}"),
        ]
        if timed:
            cells += [f"{1e3 * (cost.seconds or 0):.3f} ms", f"{(cost.seconds or 0) / spent:.0%}"]
        table.add_row(*cells)
    return table
