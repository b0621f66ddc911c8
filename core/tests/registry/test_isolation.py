"""A broken plugin costs one warning and nothing else: whatever it does, the others keep working."""

import pytest

from pumice.errors import PluginError
from pumice.registry import discover
from pumice.strategy import ImportanceScorer

HALF_WAY = """
import attrs
from pumice import ImportanceScorer, hookimpl

@attrs.frozen(kw_only=True)
class Early(ImportanceScorer):
    name = "early"

@hookimpl
def pumice_importance_scorers():
    yield Early
    raise OSError("the weights are gone")
"""


def losses(strategy):
    """A plugin that yields the loss `L` declared by these lines."""
    head = "import attrs\nfrom pumice import Loss, hookimpl\n"
    return f"{head}{strategy}\n@hookimpl\ndef pumice_losses():\n    yield L\n"


BROKEN = {
    "raises at import": ("import a_library_nobody_has\n", "import", "ModuleNotFoundError: No module named"),
    "exits at import": ("raise SystemExit(3)\n", "import", "SystemExit"),
    "a hook raises": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_quantizers():\n    return 1 / 0\n",
        "pumice_quantizers",
        "ZeroDivisionError: division by zero",
    ),
    "a generator raises half way": (HALF_WAY, "pumice_importance_scorers", "OSError: the weights are gone"),
    "a hook returns nothing": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_losses():\n    pass\n",
        "pumice_losses",
        "TypeError: 'NoneType' object is not iterable",
    ),
    "another API version": ("PUMICE_API = 99\n", "api", "plugin API 99, this pumice has 1: install a matching release"),
    "an unknown hook": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_quantizer():\n    yield\n",
        "api",
        "'pumice_quantizer', which does not exist; did you mean 'pumice_quantizers'?",
    ),
    "an argument the hook does not have": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_quantizers(model):\n    yield\n",
        "import",
        "PluginValidationError",
    ),
    "a forgotten decorator": (
        "def pumice_quantizers():\n    yield\n",
        "api",
        "'pumice_quantizers' lacks the decorator",
    ),
    "no hook at all": ("answer = 42\n", "api", "implements no hook"),
    "a wrapper": (
        "from pumice import hookimpl\n@hookimpl(wrapper=True)\ndef pumice_quantizers():\n    return (yield)\n",
        "api",
        "never wrapped",
    ),
    "a wrong type": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_quantizers():\n    yield 'int8'\n",
        "pumice_quantizers",
        "must yield subclasses of Quantizer, not 'int8'",
    ),
    "a strategy of another kind": (
        "from pumice import Loss, hookimpl\n@hookimpl\ndef pumice_quantizers():\n    yield Loss\n",
        "pumice_quantizers",
        "must yield subclasses of Quantizer",
    ),
    "an undecorated strategy": (
        losses("class L(Loss):\n    name = 'l'"),
        "pumice_losses",
        "L must be decorated with @attrs.frozen(kw_only=True)",
    ),
    "a strategy without a name": (
        losses("@attrs.frozen\nclass L(Loss):\n    pass"),
        "pumice_losses",
        "L needs a lower-case class attribute `name`, not ''",
    ),
    "a name in capitals": (
        losses("@attrs.frozen\nclass L(Loss):\n    name = 'Ell'"),
        "pumice_losses",
        "not 'Ell'",
    ),
    "a field that is no knob": (
        losses("@attrs.frozen\nclass L(Loss):\n    name = 'l'\n    rate: float"),
        "pumice_losses",
        "field 'rate' of L must be declared with pumice.knob()",
    ),
    "a command that is none": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_commands():\n    yield print\n",
        "pumice_commands",
        "must yield pumice.Command records",
    ),
    "an operator that is none": (
        "from pumice import hookimpl\n@hookimpl\ndef pumice_ops():\n    yield 'Relu'\n",
        "pumice_ops",
        "must yield pumice.ops.Op records",
    ),
}


@pytest.mark.parametrize(("code", "stage", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_recorded_and_leaves_the_others_alone(site, code, stage, reason):
    site.scorer("before", "first")
    site.install("culprit", code, version="2.5")
    site.scorer("later", "second")

    found = discover(site.entry_points())

    assert list(found.strategies("importance-scorer")) == ["first", "second"]
    (broken,) = found.broken
    assert (broken.origin.distribution, broken.origin.version, broken.stage) == ("culprit", "2.5", stage)
    assert reason in broken.reason
    assert "Error" in broken.traceback or "SystemExit" in broken.traceback
    assert broken.remedy == "pip uninstall culprit, or PUMICE_DISABLE_PLUGINS=culprit"


def test_core_itself_is_reinstalled_and_never_uninstalled(site):
    site.install("pumice", "from pumice import hookimpl\n@hookimpl\ndef pumice_ops():\n    return 1 / 0\n")
    (broken,) = discover(site.entry_points()).broken
    assert broken.remedy == "pip install --force-reinstall pumice"


@pytest.mark.parametrize(("code", "stage", "reason"), BROKEN.values(), ids=BROKEN)
def test_strict_mode_raises_what_the_plugin_raised(site, monkeypatch, code, stage, reason):
    site.install("culprit", code)
    monkeypatch.setenv("PUMICE_STRICT", "1")

    with pytest.raises(BaseException) as caught:  # SystemExit is among them
        discover(site.entry_points())

    assert reason in f"{type(caught.value).__name__}: {caught.value}"


def test_what_a_plugin_yields_elsewhere_survives_its_broken_hook(site):
    code = HALF_WAY + "\n@hookimpl\ndef pumice_losses():\n    yield Ell\n"
    code += "from pumice import Loss\n@attrs.frozen\nclass Ell(Loss):\n    name = 'ell'\n"
    site.install("half", code)

    found = discover(site.entry_points())

    assert list(found.strategies("loss")) == ["ell"]
    assert found.strategies("importance-scorer") == {}


def test_keyboard_interrupt_is_nobodys_to_swallow(site):
    site.install("slow", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        discover(site.entry_points())


def test_an_entry_point_must_name_a_module(site):
    module = site.scorer("object", "x")
    info = next(site.folder.glob("object-*.dist-info"))
    (info / "entry_points.txt").write_text(f"[pumice]\nobject = {module}:Scorer\n")

    (broken,) = discover(site.entry_points()).broken

    assert "but a plugin is a module" in broken.reason


def test_a_distribution_without_metadata_is_still_named(site):
    site.scorer("bare", "x")
    next(site.folder.glob("bare-*.dist-info/METADATA")).unlink()

    found = discover(site.entry_points())

    assert list(found.strategies("importance-scorer")) == ["x"]
    assert found.plugins[0].entry_point == "bare"


def test_two_entry_points_of_one_name_keep_the_first_and_report_the_second(site):
    site.scorer("alpha", "a", entry_point="same")
    site.scorer("beta", "b", entry_point="same")

    found = discover(site.entry_points())

    assert list(found.strategies("importance-scorer")) == ["a"]
    (broken,) = found.broken
    assert broken.origin.distribution == "beta"
    assert broken.reason == "the entry point is already taken by alpha 1.0"


def test_a_heavy_library_loaded_by_an_import_is_noticed(site):
    (site.folder / "torch").mkdir()
    (site.folder / "torch" / "__init__.py").write_text("")
    site.scorer("light", "l")
    site.install("heavy", "import torch\nfrom pumice import hookimpl\n@hookimpl\ndef pumice_losses():\n    return ()\n")

    found = discover(site.entry_points())

    assert {cost.origin.distribution: cost.heavy for cost in found.imports} == {"heavy": ("torch",), "light": ()}
    assert all(cost.seconds > 0 for cost in found.imports)


def test_broken_plugins_can_be_told_from_absent_ones(site):
    site.install("culprit", "import a_library_nobody_has\n")
    found = discover(site.entry_points())
    with pytest.raises(PluginError, match=r"^no importance-scorer 'x' is installed$"):
        found.get(ImportanceScorer, "x")
