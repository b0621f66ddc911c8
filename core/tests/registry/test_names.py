"""Names: who may claim one, what a clash says, what a misspelling says, which plugins are let in."""

import attrs
import pytest

from pumice.errors import KnobError, PluginError
from pumice.registry import discover
from pumice.strategy import ImportanceScorer, Quantizer

COMMAND = """
from pumice import Command, hookimpl

@hookimpl
def pumice_commands():
    yield Command(name="track", summary="by {by}", load=lambda: None)
"""


def test_the_order_of_plugins_does_not_depend_on_the_order_of_installation(site):
    for name in ("zeta", "alpha", "mid"):
        site.scorer(name, f"by-{name}")
    points = site.entry_points()

    one, other = discover(points), discover(reversed(points))

    assert [o.distribution for o in one.plugins] == ["alpha", "mid", "zeta"]
    assert one.plugins == other.plugins
    assert list(one.strategies("importance-scorer")) == ["by-alpha", "by-mid", "by-zeta"]


def test_core_comes_first(site):
    site.scorer("aaa", "x")
    site.scorer("zzz", "y", entry_point="core")
    assert [o.entry_point for o in discover(site.entry_points()).plugins] == ["core", "aaa"]


def test_a_strategy_knows_the_distribution_it_came_from(site):
    site.scorer("alpha", "a")
    found = discover(site.entry_points())
    assert str(found.origin(found.get(ImportanceScorer, "a"))) == "alpha 1.0"


def test_the_origin_of_a_strategy_nobody_provided_is_refused(site):
    @attrs.frozen
    class Mine(ImportanceScorer):
        name = "mine"

    with pytest.raises(PluginError, match="importance-scorer 'mine' was not provided by any installed plugin"):
        discover(site.entry_points()).origin(Mine)


def test_a_name_claimed_twice_is_an_error_naming_both(site):
    site.scorer("alpha", "same")
    site.scorer("beta", "same")

    found = discover(site.entry_points())

    sentence = "importance-scorer 'same' is provided by both 'alpha' and 'beta': uninstall one of them"
    assert found.clashes == [sentence]
    assert found.strategies("importance-scorer") == {}
    with pytest.raises(PluginError) as caught:
        found.get(ImportanceScorer, "same")
    assert str(caught.value) == sentence


def test_a_name_claimed_twice_by_one_distribution_is_its_authors_affair(site):
    site.scorer("alpha", "same", entry_point="one")
    site.scorer("alpha", "same", entry_point="two")
    (sentence,) = discover(site.entry_points()).clashes
    assert "is provided twice by 'alpha'" in sentence


def test_commands_clash_like_strategies(site):
    site.install("alpha", COMMAND.format(by="alpha"))
    assert discover(site.entry_points()).commands["track"].record.summary == "by alpha"
    site.install("beta", COMMAND.format(by="beta"))

    found = discover(site.entry_points())

    assert dict(found.commands) == {}
    assert found.clashes == ["command 'track' is provided by both 'alpha' and 'beta': uninstall one of them"]


def test_a_clash_raises_in_strict_mode(site, monkeypatch):
    site.scorer("alpha", "same")
    site.scorer("beta", "same")
    monkeypatch.setenv("PUMICE_STRICT", "1")
    with pytest.raises(PluginError, match="provided by both 'alpha' and 'beta'"):
        discover(site.entry_points())


def test_one_name_may_serve_two_kinds(site):
    site.scorer("alpha", "same")
    site.install(
        "beta",
        "import attrs\nfrom pumice import Quantizer, hookimpl\n@attrs.frozen\nclass Q(Quantizer):\n    name = 'same'\n"
        "@hookimpl\ndef pumice_quantizers():\n    yield Q\n",
    )
    found = discover(site.entry_points())
    assert not found.clashes
    assert found.get(ImportanceScorer, "same") is not found.get(Quantizer, "same")


def test_a_misspelt_strategy_names_the_nearest(site):
    site.scorer("alpha", "taylor")
    with pytest.raises(PluginError, match=r"no importance-scorer 'tailor' is installed; did you mean 'taylor'\?"):
        discover(site.entry_points()).make(ImportanceScorer, "tailor")


def test_a_strategy_is_made_from_a_name_a_table_or_itself(site):
    site.scorer("alpha", "a")
    found = discover(site.entry_points())
    plain = found.make(ImportanceScorer, "a")
    assert plain.settings() == {"norm": "l2"}
    assert found.make(ImportanceScorer, {"name": "a", "norm": "l1"}).settings() == {"norm": "l1"}
    assert found.make(ImportanceScorer, plain) is plain


def test_a_misspelt_knob_names_the_nearest(site):
    site.scorer("alpha", "a")
    with pytest.raises(KnobError, match=r"importance-scorer 'a' has no knob 'nrom'; did you mean 'norm'\?"):
        discover(site.entry_points()).make(ImportanceScorer, {"name": "a", "nrom": "l1"})


@pytest.mark.parametrize("spec", [None, 3, {}, {"norm": "l1"}, {"name": 3}])
def test_what_names_no_strategy_is_refused(site, spec):
    with pytest.raises(PluginError, match="is given as a name or a table with the key 'name'"):
        discover(site.entry_points()).make(ImportanceScorer, spec)


NESTED = """
import attrs
from pumice import Loss, Use, hookimpl, knob

@attrs.frozen(kw_only=True)
class Hard(Loss):
    name = "hard"
    smoothing: float = knob(0.0, __import__("pumice").Float(0, 1), help="label smoothing")

@attrs.frozen(kw_only=True)
class Mix(Loss):
    name = "mix"
    first: Loss = knob(None, Use("loss"), help="one part")

@hookimpl
def pumice_losses():
    yield Hard
    yield Mix
"""


def test_a_strategy_inside_a_strategy_is_made_from_its_table(site):
    from pumice.strategy import Loss

    site.install("nest", NESTED)
    found = discover(site.entry_points())

    mix = found.make(Loss, {"name": "mix", "first": {"name": "mix", "first": {"name": "hard", "smoothing": 0.1}}})

    assert mix.first.first.smoothing == 0.1
    assert found.make(Loss, {"name": "mix", **mix.settings()}) == mix
    with pytest.raises(PluginError, match="did you mean 'hard'"):
        found.make(Loss, {"name": "mix", "first": "hardd"})


def test_the_allow_list_lets_in_only_what_it_names(site, monkeypatch):
    for name in ("alpha", "beta", "gamma"):
        site.scorer(name, name)
    monkeypatch.setenv("PUMICE_PLUGINS", "beta, gamma")
    monkeypatch.setenv("PUMICE_DISABLE_PLUGINS", "gamma")
    assert [o.entry_point for o in discover(site.entry_points()).plugins] == ["beta"]


def test_an_empty_allow_list_lets_in_core_alone(site, monkeypatch):
    site.scorer("alpha", "a")
    site.scorer("pumice", "b", entry_point="core")
    monkeypatch.setenv("PUMICE_PLUGINS", "")
    assert [o.entry_point for o in discover(site.entry_points()).plugins] == ["core"]


def test_core_cannot_be_disabled(site, monkeypatch):
    site.scorer("pumice", "b", entry_point="core")
    monkeypatch.setenv("PUMICE_DISABLE_PLUGINS", "core")
    assert [o.entry_point for o in discover(site.entry_points()).plugins] == ["core"]


def test_what_is_left_out_is_never_imported(site, monkeypatch):
    site.install("culprit", "raise RuntimeError('imported')\n")
    monkeypatch.setenv("PUMICE_STRICT", "1")
    monkeypatch.setenv("PUMICE_DISABLE_PLUGINS", "culprit")
    assert discover(site.entry_points()).plugins == ()


def test_an_allow_list_that_names_nobody_is_an_error(site, monkeypatch):
    site.scorer("prune-fpgm", "a")
    monkeypatch.setenv("PUMICE_PLUGINS", "prune-fgpm")
    with pytest.raises(PluginError, match=r"'prune-fgpm', which is not installed; did you mean 'prune-fpgm'\?"):
        discover(site.entry_points())
