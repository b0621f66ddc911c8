"""`pumice plugins`: every installed strategy with its knobs and who provides it; clashes and broken plugins too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pumice.cli.console import Console, output_options

if TYPE_CHECKING:
    from pumice.registry import Registry
    from pumice.strategy import Strategy


@click.command("plugins")
@click.option("--kind", help="Only strategies of this kind, e.g. quantizer.")
@click.option("--markdown", is_flag=True, help="The table as Markdown, for a README.")
@output_options
def command(kind: str | None, markdown: bool, as_json: bool, quiet: bool, log: Any) -> None:
    """List what is installed: strategies, their knobs, who provides them."""
    from pumice.registry import registry

    console = Console(as_json=as_json, quiet=quiet, log=log)
    installed = registry()
    account = describe(installed, kind)
    if markdown and not as_json:
        console.answer(markdown_table(account))
        return
    if not as_json:
        _show(console, account)
    else:
        console.answer(data=account)


def describe(installed: Registry, kind: str | None = None) -> dict[str, Any]:
    """The whole list as plain data.

    Raises:
        PumiceError: there is no such kind; the nearest is named.
    """
    from pumice.errors import PumiceError, nearest
    from pumice.registry import STRATEGY_HOOKS
    from pumice.steps import STEPS

    kinds = [*(base.kind for base in STRATEGY_HOOKS.values()), "step"]
    if kind is not None and kind not in kinds:
        raise PumiceError(f"there is no kind of strategy '{kind}'{nearest(kind, kinds)}")
    wanted = kinds if kind is None else [kind]
    found = [
        _entry(strategy, str(installed.origin(strategy)), installed.origin(strategy).entry_point)
        for name in wanted
        if name != "step"
        for strategy in installed.strategies(name).values()
    ]
    if "step" in wanted:
        core = next((str(origin) for origin in installed.plugins if origin.entry_point == "core"), "pumice")
        found += [_entry(step, core, "core") for step in STEPS.values()]
    return {
        "plugins": [
            {"distribution": o.distribution, "version": o.version, "entry_point": o.entry_point}
            for o in installed.plugins
        ],
        "strategies": found,
        "operators": len(installed.ops.records),
        "commands": [
            {"name": n, "summary": p.record.summary, "from": str(p.origin)} for n, p in installed.commands.items()
        ],
        "clashes": installed.clashes,
        "broken": [{"plugin": str(b.origin), "reason": b.reason, "remedy": b.remedy} for b in installed.broken],
    }


def markdown_table(account: dict[str, Any]) -> str:
    """One row per strategy: kind, name, what it does, names of its knobs, distribution."""
    lines = ["| kind | name | what it does | knobs | provided by |", "|---|---|---|---|---|"]
    for entry in account["strategies"]:
        knobs = ", ".join(k["name"] for k in entry["knobs"])
        source = entry["from"].split()[0]
        cells = [entry["kind"], f"`{entry['name']}`", entry["summary"], knobs, f"`{source}`"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _entry(strategy: type[Strategy], origin: str, entry_point: str) -> dict[str, Any]:
    from pumice.cli.knobs import shown_default

    knobs = [
        {
            "name": knob.name,
            "domain": str(knob.domain),
            "default": _plain_default(knob.default),
            "default_text": shown_default(knob),
            "help": knob.help,
        }
        for knob in strategy.knobs().values()
    ]
    needs = sorted(need.value for need in strategy.needs)
    about = {"kind": strategy.kind, "name": strategy.name, "summary": strategy.summary(), "needs": needs}
    return {**about, "knobs": knobs, "from": origin, "entry_point": entry_point}


def _plain_default(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.name if hasattr(value, "knobs") else value


def _show(console: Console, account: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", "name", "what it does", "knobs: values (default)", "provided by", expand=True)
    last = ""
    for entry in account["strategies"]:
        knobs = "\n".join(f"{k['name']}: {k['domain']} ({k['default_text']})" for k in entry["knobs"])
        kind = entry["kind"] if entry["kind"] != last else ""
        last = entry["kind"]
        table.add_row(*map(escape, (kind, entry["name"], entry["summary"], knobs, entry["from"])))
    console.show(table)
    console.show(f"{len(account['plugins'])} plugins, {account['operators']} operators")
    for clash in account["clashes"]:
        console.show(f"[red]clash:[/red] {escape(clash)}")
    for broken in account["broken"]:
        sentence = f"{broken['plugin']}: {broken['reason']} (to mend it: {broken['remedy']})"
        console.show(f"[red]broken:[/red] {escape(sentence)}")
