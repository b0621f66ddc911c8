"""The space of recipes: what takes part, in which orders, and which knobs are asked for."""

import attrs
import pytest
from hypothesis import given, strategies as st

from pumice.errors import RecipeError
from pumice.knobs import Choice, Flag, Float, Int
from pumice.recipe import Recipe
from pumice.search import Space
from pumice.search.space import middle
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn
from pumice.testing.searcher import small_space

HAS = frozenset({Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER})


def drawn(data, domain):
    if isinstance(domain, Choice):
        return data.draw(st.sampled_from(domain.options))
    if isinstance(domain, Flag):
        return data.draw(st.booleans())
    number = st.integers if isinstance(domain, Int) else st.floats
    return data.draw(number(domain.low, domain.high))


@given(data=st.data())
def test_every_walk_leads_to_a_recipe_and_can_be_followed_again(data):
    space = small_space()
    proposal = space.walk(lambda name, domain: drawn(data, domain))
    assert space.walk(lambda name, domain: proposal.values[name]) == proposal
    assert [step["use"] for step in proposal.recipe["step"]] == proposal.values["pipeline"].split(" > ")


def test_a_knob_that_does_not_matter_is_not_asked_for():
    plain = small_space().default(("quantize",))
    clipped = small_space().default(("quantize",), {"quantize.bits.clipped": True})
    assert "quantize.bits.share" not in plain.values
    assert clipped.values["quantize.bits.share"] == 0.01


def test_what_the_limits_set_is_not_asked_for():
    space = attrs.evolve(small_space(), fixed={("prune", "ratio"): 0.25})
    found = space.default(("prune",))
    assert "prune.ratio" not in found.values
    assert found.recipe["step"][0]["ratio"] == 0.25


def test_a_narrowed_knob_is_asked_for_in_less_than_it_declares():
    asked = {}
    space = attrs.evolve(small_space(), narrowed={("prune", "ratio"): Float(0.1, 0.2)})
    space.walk(lambda name, domain: asked.setdefault(name, domain) and space.default(("prune",)).values[name])
    assert asked["prune.ratio"] == Float(0.1, 0.2)
    assert 0.1 <= space.default(("prune",)).values["prune.ratio"] <= 0.2


def test_the_space_holds_whatever_is_installed_and_says_what_it_leaves_out_and_why():
    space = Space.of(tiny_cnn(), HAS, {}, {})
    assert ("quantize",) in space.pipelines
    assert {taker.name for taker in space.strategies["quantizer"]} >= {"int8"}
    reasons = {one.name: one.reason for one in space.left_out}
    assert "training" in reasons["train"]
    kinds = {one.kind: one.name for one in space.left_out}
    assert "cross-entropy" in kinds["loss"]
    assert "qdq" in kinds["exporter"]


def test_only_orders_that_can_work_are_tried():
    everything = HAS | {Need.LABELS, Need.TRAINING}
    for pipeline in Space.of(tiny_cnn(), everything, {}, {}).pipelines:
        assert pipeline[0] not in ("train", "distil"), "a repair comes after what it repairs"
        if "quantize" in pipeline:
            assert not {"prune", "train", "quantize"} & set(pipeline[pipeline.index("quantize") + 1 :])


def test_an_order_that_cannot_work_is_refused_with_the_reason():
    with pytest.raises(RecipeError, match="'prune' cannot come after 'quantize': channels of integer weights"):
        Recipe.from_dict({"step": [{"use": "quantize"}, {"use": "prune"}]})


@pytest.mark.parametrize(
    ("domain", "value"), [(Choice("a", "b"), "a"), (Int(1, 9), 5), (Float(1e-4, 1.0, log=True), 1e-2)]
)
def test_a_number_without_a_usable_default_starts_in_the_middle(domain, value):
    assert middle(domain) == pytest.approx(value) if isinstance(value, float) else middle(domain) == value
