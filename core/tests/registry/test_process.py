"""The process-wide registry, as an installed pumice sees it: in a fresh process, with distributions on its path."""

import json
import os
import subprocess
import sys
import threading

import pytest

from pumice import registry as module
from pumice.registry import registry

ASK = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pumice.registry import registry
    found = [registry() for _ in range(3)][0]
print(json.dumps({
    "warnings": [str(w.message) for w in caught],
    "plugins": [o.entry_point for o in found.plugins],
    "scorers": list(found.strategies("importance-scorer")),
}))
"""


@pytest.fixture
def ask(site):
    """What a fresh interpreter with the fake distributions on its path sees."""

    def run(**environment):
        environment = {**os.environ, "PYTHONPATH": str(site.folder), **environment}
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    return run


def test_a_broken_plugin_costs_one_warning_with_the_remedy(site, ask):
    site.install("culprit", "import a_library_nobody_has\n")
    site.scorer("works", "works")

    seen = ask()

    assert "works" in seen["scorers"]
    assert seen["plugins"][0] == "core"
    (sentence,) = [w for w in seen["warnings"] if "culprit" in w]
    assert sentence == (
        "plugin 'culprit' (culprit 1.0) is left out: import failed with ModuleNotFoundError: No module named "
        "'a_library_nobody_has' (run `pumice doctor`; to mend it: pip uninstall culprit, or "
        "PUMICE_DISABLE_PLUGINS=culprit)"
    )


def test_a_clash_costs_one_warning(site, ask):
    site.scorer("alpha", "same")
    site.scorer("beta", "same")
    assert [w for w in ask()["warnings"] if "same" in w] == [
        "importance-scorer 'same' is provided by both 'alpha' and 'beta': uninstall one of them"
    ]


def test_the_switches_of_the_environment_hold(site, ask):
    site.scorer("alpha", "one")
    site.scorer("beta", "two")
    assert ask(PUMICE_PLUGINS="alpha")["scorers"] == ["one"]
    assert "two" not in ask(PUMICE_DISABLE_PLUGINS="beta")["scorers"]


def test_threads_that_start_together_share_one_registry():
    module._registry.cache_clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1
