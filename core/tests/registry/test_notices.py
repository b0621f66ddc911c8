"""Notices: listeners hear what they ask for, and cannot disturb the run."""

import warnings

import pytest

from pumice.registry import discover

LISTENER = """
from pumice import hookimpl
heard = []

@hookimpl
def pumice_step_finished(step, seconds):
    heard.append((step, seconds))
"""
FAILING = """
from pumice import hookimpl

@hookimpl
def pumice_step_finished(step):
    raise OSError("the tracking server is down")
"""


@pytest.fixture
def finish(site):
    """Tell the listeners of the installed distributions that a step finished."""

    def tell():
        discover(site.entry_points()).notify("pumice_step_finished", step="quantize", ledger=None, seconds=1.5)

    return tell


def test_a_listener_gets_the_arguments_it_names(site, finish):
    module = site.install("listener", LISTENER)
    finish()
    assert __import__(module).heard == [("quantize", 1.5)]


def test_a_listener_that_fails_is_warned_about_and_the_others_still_hear(site, finish):
    for distribution in ("aa-failing", "zz-failing"):
        site.install(distribution, FAILING)
    module = site.install("listener", LISTENER)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finish()

    assert __import__(module).heard == [("quantize", 1.5)]
    assert sorted(str(w.message) for w in caught) == [
        "plugin 'aa-failing' failed in pumice_step_finished: the tracking server is down",
        "plugin 'zz-failing' failed in pumice_step_finished: the tracking server is down",
    ]


def test_strict_mode_lets_the_failure_of_a_listener_out(site, finish, monkeypatch):
    site.install("failing", FAILING)
    monkeypatch.setenv("PUMICE_STRICT", "1")
    with pytest.raises(OSError, match="tracking server"):
        finish()
