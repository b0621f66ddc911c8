"""The menu: plain `make` prints every target, and continuous integration runs what a contributor runs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["setup", "demo", "test", "lint", "docs", "bench", "native", "sanitize", "arm", "clean"]


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_plain_make_prints_the_menu(target):
    assert re.search(rf"^  make {target} +\w", make(), re.MULTILINE)


def test_the_demo_installs_no_development_tool():
    plan = make("--dry-run", "--always-make", "demo")
    assert "pumice demo" in plan
    assert "--all-groups" not in plan


def test_continuous_integration_runs_make_test():
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
