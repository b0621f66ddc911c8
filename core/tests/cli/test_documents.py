"""What the documents show is what happens: generated parts are current, code in them runs, recipes in them read."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from pumice.cli.batch import jobs_from
from pumice.cli.console import Console
from pumice.data.declaration import read_declaration
from pumice.recipe import Recipe

ROOT = Path(__file__).resolve().parents[3]
PUMICE = str(Path(sys.executable).with_name("pumice"))
EXAMPLE = ROOT / "examples" / "fashion_resnet"


def blocks(document: str, header: str) -> list[str]:
    """The fenced blocks of a document whose fence says `header`."""
    text = (ROOT / document).read_text()
    return re.findall(rf"(?ms)^```{re.escape(header)}\n(.*?)^```", text)


def between(document: str, name: str) -> str:
    return re.search(rf"(?s)<!-- {name} -->\n(.*?)<!-- /{name} -->", (ROOT / document).read_text())[1]


def test_the_reference_of_the_command_line_is_current():
    environment = {**os.environ, "PUMICE_PLUGINS": ""}
    command = [sys.executable, "-m", "pumice.cli.reference"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/cli.md").read_text() == made, (
        "run PUMICE_PLUGINS= python -m pumice.cli.reference > docs/cli.md"
    )


def test_the_table_of_plugins_is_current(run):
    made = run("plugins", "--markdown").stdout
    assert between("README.md", "plugins") == made, "put the output of `pumice plugins --markdown` between the marks"


def test_the_output_of_the_demo_has_the_form_that_it_has():
    shown = between("README.md", "demo")
    assert re.search(r"\d\.\d\dx faster and \d\.\d\dx smaller: ", shown)
    assert re.search(r"ledger: \d+ applied, \d+ skipped, \d+ declined", shown)
    assert "wrote out/fashion_resnet.html" in shown


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_the_python_example_runs(document, tmp_path):
    (code,) = blocks(document, "python run")
    shutil.copytree(EXAMPLE / "data", tmp_path / "data")
    shutil.copy(EXAMPLE / "fashion_resnet.onnx", tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "smaller" in done.stdout
    assert {"small.onnx", "report.html", "report.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_recipe_in_the_page_means_the_same_in_both_languages():
    (toml,), (code,) = blocks("docs/recipes.md", "toml recipe"), blocks("docs/recipes.md", "python recipe")
    names = {}
    exec(code, names)
    assert Recipe.from_toml(toml) == names["recipe"]


def test_the_list_in_the_page_is_a_list(tmp_path):
    (text,) = blocks("docs/recipes.md", "toml batch")
    (tmp_path / "fleet.toml").write_text(text)
    jobs = jobs_from([str(tmp_path / "fleet.toml")], None, None)
    assert [str(job.output) for job in jobs] == ["resnet.onnx", "text/bert.int8.onnx"]


def test_the_plugin_in_the_readme_installs_and_works(tmp_path):
    """Built as a wheel, put on the path, and run through the command line, without calibration data."""
    text = (ROOT / "README.md").read_text()
    source = tmp_path / "source"
    source.mkdir()
    for name, code in re.findall(r"(?ms)^```\w+ file=(\S+)\n(.*?)^```", text):
        (source / name).write_text(code)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    out, page = tmp_path / "half.onnx", tmp_path / "half.html"
    command = ["compress", EXAMPLE / "fashion_resnet.onnx", "--quantizer", "half", "--smallest", "100", "-o", out]
    done = subprocess.run(
        [PUMICE, *map(str, command), "--report", str(page), "--no-measure"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 0.55 * (EXAMPLE / "fashion_resnet.onnx").stat().st_size
    assert "its weights are stored in float16" in page.read_text()
    assert '"weight_sqnr_db": 7' in page.with_suffix(".json").read_text()  # about 75 dB: float16 has 11 bits


def test_the_page_about_data_declares_every_key_there_is(tmp_path):
    (declaration,) = blocks("docs/data.md", "toml declaration")
    (tmp_path / "pumice.toml").write_text(declaration)
    read = read_declaration(tmp_path)
    shown = re.findall(r"^([a-z_]+) =", declaration, re.MULTILINE)
    records = (type(read), type(read.tokenizer), type(read.inputs["image"]))
    known = {field.name for record in records for field in attrs.fields(record)}
    assert set(shown) == known - {"path", "inputs", "tokenizer", "source"} | {"from"}


def test_every_option_of_the_documents_exists():
    """Options written in the pages are options of some command (or knobs of the quantizer that the pages use)."""
    environment = {**os.environ, "COLUMNS": "200"}
    known = set()
    for name in ("compress", "batch", "inspect", "evaluate", "compare", "recipe", "plugins", "doctor", "demo"):
        shown = subprocess.run([PUMICE, name, "--help"], env=environment, capture_output=True, text=True, check=True)
        known |= set(re.findall(r"--[a-z][a-z-]+", shown.stdout))
    for document in ("README.md", "docs/quickstart.md", "docs/data.md", "docs/recipes.md", "docs/report.md"):
        text = (ROOT / document).read_text()
        lines = [line for line in text.splitlines() if "pumice " in line or re.search(r"`--", line)]
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
        assert used <= known, f"{document}: {sorted(used - known)}"


def test_the_console_is_a_progress():
    with Console(quiet=True).task("label", 1) as advance:
        advance()
        advance(units=2)
