"""Wheels of the workspace, and fresh environments to install them into with plain pip."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **options):
    """Run a program and return what it printed; its standard error is the reason of a failure."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "COV", "PUMICE_"))}
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env=environment, **options
    )
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    """A folder with the wheel of core, of every pure plugin and of the template."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    projects = [
        p for area in ("core", "plugins/*", "contrib/template") for p in sorted(ROOT.glob(f"{area}/pyproject.toml"))
    ]
    for project in projects:
        if "hatchling.build" in project.read_text():
            run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=project.parent)
    return folder


@pytest.fixture(scope="session")
def third_party(tmp_path_factory):
    """A folder in which every third-party package that the wheels need, and pytest, is installed (by links)."""
    folder = tmp_path_factory.mktemp("third-party")
    for distribution in _closure(["pytest", *_requirements()]):
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (folder / top).exists():
                (folder / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return folder


@pytest.fixture
def fresh(tmp_path, wheelhouse, third_party):
    """A new environment: `fresh.pip("pumice")` installs by pip alone, `fresh.run("pumice", ...)` runs its program."""
    return Fresh(tmp_path / "venv", wheelhouse, third_party)


class Fresh:
    """A virtual environment that has pip, the third-party packages and nothing of pumice."""

    def __init__(self, folder, wheelhouse, third_party):
        self.bin, self.wheelhouse = folder / "bin", wheelhouse
        run(sys.executable, "-m", "venv", folder)
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "third-party.pth").write_text(f"{third_party}\n")

    def pip(self, *packages):
        where = ["--no-index", "--find-links", self.wheelhouse, "-c", ROOT / "constraints.txt"]
        return self.run("python", "-m", "pip", "install", "--quiet", *where, *packages)

    def run(self, program, *arguments, **options):
        return run(self.bin / program, *arguments, **options)


def _requirements():
    """What the wheels ask for, own packages left out."""
    found = [d for d in importlib.metadata.distributions() if d.name.startswith("pumice")]
    asked = {Requirement(r).name for d in found for r in d.requires or [] if "extra ==" not in r}
    return sorted(name for name in asked if not name.startswith("pumice"))


def _closure(names):
    """The installed distributions of these names and of everything that they require."""
    seen, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = importlib.metadata.distribution(name)
            wanted = map(Requirement, seen[name].requires or [])
            waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return seen.values()
