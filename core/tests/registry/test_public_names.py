"""`import pumice` shows every public name and loads each when it is first asked for."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import pumice

SOURCE = Path(pumice.__file__)


def declared_for_type_checkers():
    """{name: module} of the imports under `if TYPE_CHECKING`."""
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    return {alias.asname: entry.module for entry in block.body for alias in entry.names}


def test_type_checkers_see_the_names_that_are_really_there():
    assert declared_for_type_checkers() == pumice._MODULE_OF
    assert set(dir(pumice)) == {"__version__", *pumice._MODULE_OF}


@pytest.mark.parametrize("name", sorted(pumice._MODULE_OF))
def test_every_public_name_can_be_had(name):
    assert getattr(pumice, name) is getattr(importlib.import_module(pumice._MODULE_OF[name]), name)


def test_no_public_name_is_also_a_module():
    """Which of the two `pumice.x` is would depend on what was imported before."""
    assert [name for name in pumice._MODULE_OF if importlib.util.find_spec(f"pumice.{name}")] == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'compression'"):
        pumice.compression  # noqa: B018 - asking is the test


def test_import_pumice_loads_no_library():
    code = "import sys, pumice; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"attrs", "attr", "numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "click", "rich", "pluggy"}
    assert not heavy & set(done.stdout.split())
