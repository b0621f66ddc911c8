"""Fake distributions on disk: a `.dist-info` and a module each, found exactly as pip-installed ones are."""

import importlib.metadata
import itertools
import sys
import textwrap
from pathlib import Path

import pytest

_serial = itertools.count()

SCORER = """
import attrs
from pumice import Choice, ImportanceScorer, hookimpl, knob

@attrs.frozen(kw_only=True)
class Scorer(ImportanceScorer):
    "Scores by {name}."
    name = "{name}"
    norm: str = knob("l2", Choice("l1", "l2"), help="distance between filters")

@hookimpl
def pumice_importance_scorers():
    yield Scorer
"""


class Site:
    """A folder that plays site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, code: str, *, entry_point: str | None = None, version: str = "1.0") -> str:
        """Write a distribution whose one entry point names a fresh module with this code; returns the module's name."""
        module = f"fake_{distribution.replace('-', '_')}_{next(_serial)}"
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        line = f"{entry_point or distribution} = {module}\n"
        entries = info / "entry_points.txt"
        entries.write_text((entries.read_text() if entries.exists() else "[pumice]\n") + line)
        return module

    def scorer(self, distribution: str, name: str, *, entry_point: str | None = None) -> str:
        """Install a plugin that works."""
        return self.install(distribution, SCORER.format(name=name), entry_point=entry_point)

    def entry_points(self) -> list[importlib.metadata.EntryPoint]:
        found = importlib.metadata.distributions(path=[str(self.folder)])
        return [e for d in found for e in d.entry_points if e.group == "pumice"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder on `sys.path` to install fake distributions into, with no switch set in the environment."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for variable in ("PUMICE_PLUGINS", "PUMICE_DISABLE_PLUGINS", "PUMICE_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    yield Site(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
