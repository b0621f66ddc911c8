"""Run benchmarks and write what they printed into `docs/benchmarks.md`, one section a script, with its machine.

    python docs/benchmarks.py [NAME ...] [--quick]        bench_int8, say; without names every benchmarks/bench_*.py

Sections of scripts that are not run stay as they are. Options are handed to the scripts. What they wrote as JSON stays
in `out/`. Where a benchmark fails, the page keeps what it has, and the exit code is 1.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
HEADER = """# Benchmarks

<!-- Written by docs/benchmarks.py (`make bench`) from what the scripts in benchmarks/ printed. -->

What the columns mean is told by the scripts and by `benchmarks/README.md`.
"""
SECTION = re.compile(r"^## `(\w+)\.py`\n", re.MULTILINE)


def run(script: Path, options: list[str]) -> str:
    """A section: the machine, and what the benchmark printed, which is shown while it runs."""
    figures = ROOT / "out" / f"{script.stem}.json"
    figures.parent.mkdir(exist_ok=True)
    command = [sys.executable, script, "--json", figures, *options]
    printed = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout or []:
            print(line, end="", flush=True)
            printed.append(line)
    if process.returncode:
        sys.exit(
            f"{script.name} failed with exit code {process.returncode}: its section in {PAGE.name} stays as it was"
        )
    return f"Measured on: {machine_of(json.loads(figures.read_text()))}.\n\n{''.join(printed).strip()}\n"


def machine_of(figures: dict) -> str:
    """The machine as one line."""
    return ", ".join(f"{key} {value}" for key, value in figures["machine"].items())


def sections() -> dict[str, str]:
    """What the page holds, by the name of the script."""
    parts = SECTION.split(PAGE.read_text() if PAGE.exists() else "")[1:]
    return {name: text.strip() + "\n" for name, text in zip(parts[::2], parts[1::2], strict=True)}


def main(arguments: list[str]) -> None:
    """Run what is named and write the page after each, so that hours of work are never lost."""
    names, options = ([a for a in arguments if a.startswith("-") == dashed] for dashed in (False, True))
    every = {script.stem: script for script in sorted((ROOT / "benchmarks").glob("bench_*.py"))}
    if unknown := sorted(set(names) - set(every)):
        sys.exit(f"no benchmark is called {', '.join(unknown)}: there are {', '.join(every)}")
    for name in names or every:
        found = sections() | {name: run(every[name], options)}
        body = [f"## `{known}.py`\n\n{found[known]}" for known in sorted(found)]
        PAGE.write_text("\n".join([HEADER, *body]))


if __name__ == "__main__":
    main(sys.argv[1:])
