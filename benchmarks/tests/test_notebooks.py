"""The notebooks of the documentation: they hold what they printed, and their code runs, in small."""

import json
from pathlib import Path

import numpy as np
import pytest
from models import pictures

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_what_it_printed(notebook):
    for cell in code_cells(notebook):
        assert cell["execution_count"], "a cell was not run"
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert any(cell["outputs"] for cell in code_cells(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_runs_in_small(notebook, monkeypatch):
    data = ROOT / "examples" / "fashion_resnet" / "data"
    with np.load(data / "calibration.npz") as training, np.load(data / "test.npz") as test:
        few = pictures.Pictures(training["x"][:8], test["x"][:50], test["labels"][:50])
        seen = training["x"][:256], training["labels"][:256]
    monkeypatch.setattr(pictures, "fashion", lambda: few)
    monkeypatch.setattr(pictures, "fashion_training", lambda: seen)
    monkeypatch.setenv("PUMICE_NOTEBOOK_QUICK", "1")
    monkeypatch.chdir(notebook.parent)
    namespace = {"__name__": "notebook"}
    for cell in code_cells(notebook):
        exec(compile("".join(cell["source"]), str(notebook), "exec"), namespace)
