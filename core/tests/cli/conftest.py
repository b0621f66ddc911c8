"""Running commands: in this process (quick), or as a user does (a subprocess)."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attrs
import pytest
from click.testing import CliRunner, Result

import pumice
from pumice.cli.application import application
from pumice.knobs import Choice, Float, Int, knob
from pumice.registry import Registry, discover
from pumice.strategy import Quantizer


@attrs.frozen(kw_only=True)
class Coarse(Quantizer):
    """Rounds hard."""

    name = "coarse"
    calibrator: str = knob("minmax", Choice("minmax", "entropy"), help="how ranges are chosen")
    bits: int = knob(8, Int(2, 8), help="bits of a weight")
    per_channel: bool = knob(True, help="one scale a channel")
    skip: tuple[str, ...] = knob((), help="layers to skip")


@attrs.frozen(kw_only=True)
class Fine(Quantizer):
    """Rounds gently."""

    name = "fine"
    calibrator: str = knob("mse", Choice("mse", "minmax"), help="how ranges are chosen")
    strength: float = knob(0.5, Float(0, 1), help="how gently")
    samples: int = knob(3, Int(1, 9), help="its own kind of samples")


class FakeEntryPoint:
    """What `importlib.metadata` would find if a distribution were installed."""

    def __init__(self, name: str, module: ModuleType, distribution: str) -> None:
        self.name, self.value, self.module = name, module.__name__, module
        self.dist = type("Distribution", (), {"name": distribution, "version": "9.9"})

    def load(self) -> ModuleType:
        return self.module


def _module(**hooks):
    """A plugin module that gives these records for these hooks."""
    module = ModuleType("stranger")
    for hook, records in hooks.items():
        setattr(module, hook, pumice.hookimpl(_giving(records), specname=hook))
    return module


def _giving(records):
    def give():
        if isinstance(records, Exception):
            raise records
        return records

    return give


@pytest.fixture
def plugin():
    return _module


@pytest.fixture
def install(monkeypatch):
    """Make the process-wide registry hold core and the given plugins, each under its own distribution."""
    import importlib.metadata

    def install(**modules: ModuleType) -> Registry:
        core = [e for e in importlib.metadata.entry_points(group="pumice") if e.name == "core"]
        fakes = [FakeEntryPoint(name.replace("_", "-"), m, f"dist-{name}") for name, m in modules.items()]
        found = discover([*core, *fakes])
        monkeypatch.setattr("pumice.registry._registry", lambda: found)
        return found

    return install


@pytest.fixture
def quantizers(install) -> Registry:
    return install(two=_module(pumice_quantizers=[Coarse, Fine]))


@pytest.fixture
def run():
    """Invoke a command in this process; the result has exit_code, stdout and stderr."""

    def run(*args: object) -> Result:
        return CliRunner().invoke(application, [str(a) for a in args], catch_exceptions=False)

    return run


@pytest.fixture
def shell():
    """Run `pumice` as a user does."""

    def shell(*args: object, cwd: Path | None = None, **extra: object) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("pumice")
        options = {"capture_output": True, "text": True, "timeout": 240, **extra}
        return subprocess.run([str(program), *map(str, args)], cwd=cwd, check=False, **options)

    return shell
