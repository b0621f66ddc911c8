"""The documentation is current and works: generated pages are what would be generated, the plugin in the page runs."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pumice.testing
from pumice import hookspecs
from pumice.steps import Quantize
from pumice.testing import QuantizerContract

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

HOOKS = [name for name in dir(hookspecs) if name.startswith("pumice_")]


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_generated_page_is_current(name):
    assert (DOCS / name).read_text() == pages.PAGES[name](), "run `make docs` and commit what it changed"


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_arguments(name):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    assert f"### `{name}({arguments})`" in (DOCS / "hooks.md").read_text()


def test_no_link_inside_the_documentation_is_broken():
    for path in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", DOCS, tmp_path / "site"]
    done = subprocess.run(build, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "write-a-plugin.html").exists()


@pytest.fixture
def page_plugin(tmp_path):
    """The plugin of `write-a-plugin.md`, with the entry point that installing it would give."""
    text = (DOCS / "write-a-plugin.md").read_text()
    for name, code in re.findall(r"(?ms)^```\w+ file=(\S+)\n(.*?)^```", text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    return tmp_path


@pytest.fixture(scope="module")
def page_quantizer():
    (code,) = re.findall(r"(?ms)^```python quantizer\n(.*?)^```", (DOCS / "write-a-plugin.md").read_text())
    assert len(code.splitlines()) <= 60
    names = {"__name__": "pumice_coarse"}
    exec(code, names)
    return names["Coarse"]


def test_the_quantizer_in_the_page_keeps_the_contract_of_quantizers(page_quantizer):
    held = type("Held", (QuantizerContract,), {"strategy": page_quantizer, "settings": {"bits": 8}})()
    for name in dir(held):
        if name.startswith("test_") and "installed" not in name:
            getattr(held, name)()


def test_the_guard_gives_back_what_the_page_says(page_quantizer):
    example = ROOT / "examples" / "fashion_resnet"
    recipe = pumice.Recipe([Quantize(quantizer=page_quantizer(bits=3))])
    result = pumice.compress(example / "fashion_resnet.onnx", example / "data", recipe, measure=False)
    (said,) = [note for note in result.notes if "returned to floating point" in note]
    assert f"    {said[: said.rindex(':')]}: ...\n" in (DOCS / "write-a-plugin.md").read_text()


def test_every_contract_is_named_in_the_page():
    page = (DOCS / "write-a-plugin.md").read_text()
    assert [name for name in pumice.testing.__all__ if f"`{name}`" not in page] == ["StrategyContract"]


def test_the_plugin_in_the_page_passes_its_own_contract(page_plugin):
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", page_plugin]
    environment = {"PYTHONPATH": str(page_plugin / "site"), "PUMICE_STRICT": "1"}
    done = subprocess.run([*run, page_plugin / "tests"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)
