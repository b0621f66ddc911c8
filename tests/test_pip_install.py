"""Plain pip is enough: wheels install into a fresh environment and work there, without uv and without the workspace."""

import json
import zipfile

import pytest

from pumice import __version__


def listed(environment):
    """The entry points that the command line of an environment tells of."""
    return {plugin["entry_point"] for plugin in json.loads(environment.run("pumice", "plugins", "--json"))["plugins"]}


def test_core_alone_installs_and_lists_itself(fresh):
    fresh.pip("pumice")
    assert listed(fresh) == {"core"}
    assert __version__ in fresh.run("pumice", "--version")
    fresh.run("python", "-m", "pip", "check")


def test_a_plugin_brings_core_and_is_there_at_once(fresh):
    fresh.pip("pumice-runtime-ort")
    assert {"core", "runtime-ort"} <= listed(fresh)
    fresh.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "pumice-runtime-ort")
    assert listed(fresh) == {"core"}


@pytest.mark.parametrize("name", ["pumice/py.typed", "pumice/quantize/targets/ort-cpu.toml"])
def test_the_wheel_of_core_holds_its_data_files(wheelhouse, name):
    (wheel,) = wheelhouse.glob("pumice-[0-9]*.whl")
    assert name in zipfile.ZipFile(wheel).namelist()


def test_wheels_hold_no_tests(wheelhouse):
    for wheel in wheelhouse.glob("*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        assert not [n for n in names if n.startswith("tests/") or "/tests/" in n], wheel.name
