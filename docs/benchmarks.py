"""Run every `benchmarks/bench_*.py` and write `docs/benchmarks.md`: the tables they printed, and the machine.

    python docs/benchmarks.py [--quick]

Options are handed to the scripts. What they wrote as JSON stays in `out/`. Where a benchmark fails, the page is left as
it was and the exit code is 1.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
HEADER = """# Benchmarks

<!-- Written by docs/benchmarks.py (`make bench`) from what the scripts in benchmarks/ printed. -->

Measured on: {machine}. What the columns mean is told by the scripts and by `benchmarks/README.md`.
"""


def run(script: Path, options: list[str]) -> tuple[str, dict]:
    """What a benchmark printed, shown while it runs, and what it wrote as JSON."""
    figures = ROOT / "out" / f"{script.stem}.json"
    figures.parent.mkdir(exist_ok=True)
    command = [sys.executable, script, "--json", figures, *options]
    printed = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout or []:
            print(line, end="", flush=True)
            printed.append(line)
    if process.returncode:
        sys.exit(f"{script.name} failed with exit code {process.returncode}; {PAGE.name} is left as it was")
    return "".join(printed), json.loads(figures.read_text())


def machine_of(figures: dict) -> str:
    """The machine as one line."""
    return ", ".join(f"{key} {value}" for key, value in figures["machine"].items())


def main(options: list[str]) -> None:
    """One section a script, named after its first line."""
    sections, machine = [], ""
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        printed, figures = run(script, options)
        machine = machine_of(figures)
        sections.append(f"## `{script.name}`\n\n{printed.strip()}\n")
    PAGE.write_text("\n".join([HEADER.format(machine=machine), *sections]))


if __name__ == "__main__":
    main(sys.argv[1:])
