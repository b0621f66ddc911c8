import numpy as np
import pytest
from hypothesis import given, strategies as st

from pumice.prune import ChannelGroup, Place
from pumice.prune.scoring import normalised
from pumice.prune.selection import Limits, select


def group(name, channels):
    return ChannelGroup(name, Place(name, 0), channels, (), {})


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 20), st.floats(0, 1), st.integers(1, 64))
def test_a_layer_keeps_something_and_never_more_than_it_has(channels, wanted, floor, least, multiple):
    keep = Limits(floor=floor, least=least, multiple=multiple).keep(channels, min(wanted, channels))
    assert 1 <= keep <= channels
    assert keep >= min(channels, floor, int(np.ceil(least * channels)))
    assert keep in (channels, keep // multiple * multiple) or channels < 2 * multiple


def test_a_global_ranking_takes_from_the_layer_that_matters_least():
    scores = {"a": np.arange(10) + 100.0, "b": np.arange(10) + 1.0}
    removed = select([group("a", 10), group("b", 10)], scores, 0.4, Limits(floor=2), scope="global")
    assert (len(removed["a"]), len(removed["b"])) == (0, 8)


def test_scopes_are_ranked_among_themselves():
    scores = {"a": np.arange(10) + 100.0, "b": np.arange(10) + 1.0}
    groups = [group("a", 10), group("b", 10)]
    removed = select(groups, scores, 0.5, Limits(), scope="scopes", patterns=("a*", "b*"))
    assert [removed["a"], removed["b"]] == [list(range(5))] * 2


@pytest.mark.parametrize("by", ["mean", "max", "l2", "rank"])
def test_normalised_scores_do_not_depend_on_the_scale(by):
    scores = np.random.default_rng(0).random(9)
    np.testing.assert_allclose(normalised(scores, by), normalised(1000 * scores, by))
