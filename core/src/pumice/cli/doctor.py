"""`pumice doctor`: shows what `pumice.doctor.examine` found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pumice.cli.console import Console, output_options, quantity

if TYPE_CHECKING:
    from pumice.doctor import Examination


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool, log: Path | None) -> int:
    """Check this installation and this machine.

    Exit code 1 says that something is broken; what it is and how to mend it is shown.
    """
    from pumice.doctor import examine

    console = Console(as_json=as_json, quiet=quiet, log=log)
    found = examine()
    console.answer(as_text(found), found.to_json())
    return 1 if found.findings else 0


def as_text(found: Examination) -> str:
    """Sections of aligned lines, then what is broken with its traceback."""
    machine = found.machine
    facts = {
        "system": machine["system"],
        "cpu": f"{machine['cpu']}, {machine['cpus_usable']} usable",
        "cpu features": " ".join(machine["cpu_features"]) or "unknown",
        "memory": f"{quantity(machine['memory_bytes'])}, {quantity(machine['memory_available_bytes'])} available",
    }
    parts = [_section("versions", found.versions), _section("machine", facts), _section("plugins", found.plugins)]
    parts += [_section("runtimes", found.runtimes)]
    parts += [_section("kernels", found.kernels)] if found.kernels else []
    if found.advice:
        parts.append("\n".join(["worth knowing", *(f"  {sentence}" for sentence in found.advice)]))
    for finding in found.findings:
        lines = [f"BROKEN: {finding.what}", f"  to mend it: {finding.remedy}"]
        parts.append("\n".join([*lines, *(f"    {line}" for line in finding.details.splitlines())]))
    parts.append("everything works" if not found.findings else f"{len(found.findings)} broken")
    return "\n\n".join(parts)


def _section(title: str, facts: dict[str, str]) -> str:
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])
