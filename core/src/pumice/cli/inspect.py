"""`pumice inspect`: what is in a model, where its bytes and its work are, what would be worth compressing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pumice.cli.console import Console, output_options, quantity

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

    from pumice.diagnose import Analysis, NodeCost
    from pumice.strategy import Runtime

ROWS = 12


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Samples: the shapes of the first are used, and it is timed."
)
@click.option("--runtime", help="Runtime to profile with. [default: the best installed]")
@click.option("--groups", is_flag=True, help="Show the channels that would be pruned together, and what blocks others.")
@output_options
def command(
    model: Path, data: Path | None, runtime: str | None, groups: bool, as_json: bool, quiet: bool, log: Path | None
) -> None:
    """Show what is in a model and what would be worth compressing."""
    from pumice.cli.groups import groups_of, show_groups
    from pumice.cli.specs import configured
    from pumice.diagnose import analyse
    from pumice.measure import pick_runtime
    from pumice.model import load
    from pumice.strategy import Runtime

    console = Console(as_json=as_json, quiet=quiet, log=log)
    loaded = load(model)
    if groups:
        held = groups_of(loaded)
        if as_json:
            console.answer(data=held)
        else:
            show_groups(console, held)
        return
    feeds = None if data is None else _first_sample(data, loaded)
    engine = None if runtime is None else configured(Runtime, runtime)
    found = analyse(loaded, feeds, pick_runtime(engine) if feeds is not None else None)
    accepted = accepting_runtimes(loaded)
    if as_json:
        facts = {"model": str(model), "file_bytes": model.stat().st_size, "runtimes": accepted}
        console.answer(data={**facts, **found.to_json()})
    else:
        _show(console, model, found, accepted)


def accepting_runtimes(model: ir.Model) -> dict[str, str]:
    """`yes`, or why not, for every installed runtime: each is asked to open the model."""
    from pumice.errors import PumiceError
    from pumice.model import clone
    from pumice.registry import registry
    from pumice.strategy import Runtime

    found = {}
    for name in registry().strategies(Runtime.kind):
        runtime = registry().make(Runtime, name)
        try:
            found[name] = runtime.available() or _opened(runtime, clone(model))
        except PumiceError as error:
            found[name] = str(error)
    return found


def _opened(runtime: Runtime, model: ir.Model) -> str:
    runtime.open(model)
    return "yes"


def _first_sample(data: Path, model: Any) -> dict[str, Any]:
    from pumice.data import open_dataset
    from pumice.errors import DataError

    for batch in open_dataset(data, model).batches(batch_size=1, limit=1):
        return dict(batch.feeds)
    raise DataError(f"'{data}' holds no sample: give at least one")


def _show(console: Console, path: Path, found: Analysis, accepted: dict[str, str]) -> None:
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
        "runs on": "; ".join(name for name, state in accepted.items() if state == "yes") or "nothing installed",
        **{f"not {name}": state for name, state in accepted.items() if state != "yes"},
        "work": f"{quantity(found.macs, 'MAC')} a sample" + (f" ({found.assumed})" if found.assumed else ""),
    }
    for name, text in facts.items():
        console.show(f"[bold]{name:<13}[/bold]{escape(text)}")
    console.show("", _costs(found))
    if found.times:
        console.show("", _times(found))
    console.show("\n[bold]What would be worth compressing[/bold]")
    for sentence in found.advice or ("Nothing stands out: no large floating-point weights were found.",):
        console.show(f"- {escape(sentence)}")


def _costs(found: Analysis) -> Table:
    """The heaviest nodes by work and bytes together."""
    from rich.markup import escape

    def weight(cost: NodeCost) -> float:
        return cost.macs / max(found.macs, 1) + cost.weight_bytes / max(found.weight_bytes, 1)

    order = sorted(found.costs, key=weight, reverse=True)[:ROWS]
    table = _table(f"heaviest {len(order)} of {len(found.costs)} nodes", "work", "share", "weights", "share")
    for cost in order:
        table.add_row(
            escape(cost.node),
            cost.op,
            quantity(cost.macs, "MAC"),
            f"{cost.macs / max(found.macs, 1):.0%}",
            quantity(cost.weight_bytes),
            f"{cost.weight_bytes / max(found.weight_bytes, 1):.0%}",
        )
    return table


def _times(found: Analysis) -> Table:
    from rich.markup import escape

    total = sum(time.seconds for time in found.times)
    shown = found.times[:ROWS]
    table = _table(f"slowest {len(shown)} of {len(found.times)} nodes as the runtime ran them", "time", "share")
    for time in shown:
        table.add_row(
            escape(time.node), time.op, f"{1e3 * time.seconds:.3f} ms", f"{time.seconds / max(total, 1e-12):.0%}"
        )
    return table


def _table(title: str, *figures: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("node", "operator"):
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table
