"""Resolve the workspace afresh and write the pins, twice: into pyproject.toml for uv and into constraints.txt for pip.

A lock file would record the addresses of the registry that resolved it, so none is committed. A constraint is
`name==version ; marker` and no more: uv resolves to exactly these in a clone, and `pip install -c constraints.txt` too.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make pins`; the same list is in pyproject.toml, for uv.\n"
BLOCK = re.compile(r"(?<=^constraint-dependencies = \[\n).*?(?=^\])", re.MULTILINE | re.DOTALL)


def resolve(uv: str) -> list[str]:
    """Every third-party requirement of the workspace, pinned to the newest versions that agree."""
    export = ["export", "--no-hashes", "--no-annotate", "--no-header", "--no-emit-workspace", "--upgrade"]
    selection = ["--all-packages", "--all-groups", "--all-extras"]
    done = subprocess.run([uv, *export, *selection, "--quiet"], cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("-"))


def write(pins: list[str]) -> None:
    """Both copies of the list."""
    (ROOT / "constraints.txt").write_text(HEADER + "".join(f"{pin}\n" for pin in pins))
    pyproject = ROOT / "pyproject.toml"
    quoted = "".join(f'    "{pin}",\n' for pin in pins)
    pyproject.write_text(BLOCK.sub(lambda _: quoted, pyproject.read_text(), count=1))


def main(uv: str) -> None:
    """Resolve without the present pins; put them back if the resolution fails."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    before = tomllib.loads(pyproject)["tool"]["uv"]["constraint-dependencies"]
    write([])
    try:
        pins = resolve(uv)
    except subprocess.CalledProcessError as error:
        write(before)
        sys.exit(f"the workspace does not resolve:\n{error.stderr}")
    write(pins)
    print(f"{len(pins)} pins written, {len(set(pins) - set(before))} of them new")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "uv")
