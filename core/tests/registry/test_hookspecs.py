"""The manual: every hook says when, what and how in the same words, and is collected by the registry."""

import inspect

import pytest

from pumice import hookspecs
from pumice.registry import STRATEGY_HOOKS, discover

HOOKS = {name: member for name, member in vars(hookspecs).items() if name.startswith("pumice_")}
PROVIDERS = [name for name, hook in HOOKS.items() if not inspect.signature(hook).parameters]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_the_whole_manual_entry(name):
    hook = HOOKS[name]
    text = inspect.getdoc(hook)
    sections = ["When:", "Arguments:" if inspect.signature(hook).parameters else "Return:", "Example:"]
    positions = [text.index(section) for section in sections]
    assert positions == sorted(positions)
    assert f"def {name}(" in text[positions[-1] :]
    for argument in inspect.signature(hook).parameters:
        assert f"`{argument}`" in text


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_hook_is_collected(site, name):
    site.install("fails", f"from pumice import hookimpl\n@hookimpl\ndef {name}():\n    raise OSError('called')\n")
    (broken,) = discover(site.entry_points()).broken
    assert broken.stage == name


def test_every_kind_of_strategy_has_one_hook():
    kinds = [base.kind for base in STRATEGY_HOOKS.values()]
    assert len(set(kinds)) == len(kinds)
    assert all(hook in HOOKS for hook in STRATEGY_HOOKS)
