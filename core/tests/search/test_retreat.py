"""Where too much is lost, milder recipes: less noise, found by what was measured."""

import math

import attrs
import pytest

from pumice.search import Figures, Space, Trial
from pumice.search.retreat import DIAL, Retreat
from pumice.search.trial import TARGET, tolerable
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn

MAX_DROP = 0.01


@pytest.fixture(scope="module")
def retreat():
    fixed = {("quantize", "noise"): 0.0}
    space = Space.of(tiny_cnn(), frozenset({Need.CALIBRATION}), fixed, {}, goal="balanced")
    known = tuple(one for one in space.strategies["quantizer"] if one.name in ("int4", "int8", "kmeans", "mixed"))
    return Retreat(space=attrs.evolve(space, strategies={**space.strategies, "quantizer": known}), max_drop=MAX_DROP)


def trial(retreat, name, drop, noise, *, dial=0.0, cost=0.0, state="measured"):
    """One recipe of a single step."""
    changed = {"quantize.quantizer": name, **({DIAL: dial} if dial else {})}
    proposal = retreat.space.default(("quantize",), changed)
    figures = Figures(
        drop=drop, low=drop, high=drop + 1e-4, latency=1.0, speedup=2.0, file_bytes=100, compression=4.0
    )  # fmt: skip
    return Trial(
        number=1,
        values=proposal.values,
        recipe=proposal.recipe,
        origin="opening: a test",
        state=state,
        figures=figures if state == "measured" else None,
        drop=drop,
        noise=noise,
        cost=cost,
        violation=max(0.0, drop - MAX_DROP),
    )


def few_answers(found):
    """The same, had it been measured on a few hundred answers."""
    return attrs.evolve(found, figures=attrs.evolve(found.figures, high=found.figures.drop + 0.02))


def asked(opening):
    return opening.proposal.values["quantize.quantizer"], opening.proposal.values[DIAL]


def test_nothing_is_milder_than_what_keeps_the_accuracy(retreat):
    assert retreat.rung([]) is None
    assert retreat.rung([trial(retreat, "int8", 0.0, 0.004)]) is None


def test_the_first_to_be_asked_is_what_chooses_a_format_for_every_layer_with_the_noise_that_seems_right(retreat):
    name, noise = asked(retreat.rung([trial(retreat, "int8", 0.05, 0.004, state="stopped")]))
    assert name == "mixed"
    assert noise == pytest.approx(0.004 * (TARGET * MAX_DROP / 0.05) ** 2, rel=0.1)


def test_it_begins_with_the_knobs_that_the_goal_asks_for(retreat):
    opening = retreat.rung([trial(retreat, "int8", 0.05, 0.004)])
    assert opening.proposal.recipe["step"][0]["quantizer"]["minimise"] == "both"


def test_then_the_quantizers_that_lost_too_much_are_asked_for_less_noise(retreat):
    trials = [trial(retreat, "int8", 0.05, 0.004), trial(retreat, "mixed", 0.05, 0.002, dial=4e-5, state="running")]
    assert asked(retreat.rung(trials))[0] == "int8"


def test_noise_is_bisected_between_what_kept_the_accuracy_and_what_did_not(retreat):
    trials = [trial(retreat, "int8", 0.05, 0.004), trial(retreat, "int8", 0.002, 4e-5, dial=5e-5, cost=2.0)]
    name, noise = asked(retreat.rung(trials))
    assert name == "int8"
    assert noise == pytest.approx(math.sqrt(0.004 * 4e-5), rel=0.1)


def test_where_answers_are_few_a_lucky_recipe_does_not_count(retreat):
    lost, lucky = trial(retreat, "int8", 0.012, 0.004), trial(retreat, "int8", 0.0, 0.003, dial=0.003)
    trials = [few_answers(lost), few_answers(lucky), trial(retreat, "mixed", 0.05, None, state="late")]
    name, noise = asked(retreat.rung(trials))
    assert name == "int8"
    assert noise == pytest.approx(tolerable(trials, MAX_DROP), rel=0.1)


def test_it_ends_where_there_is_nothing_to_gain(retreat):
    trials = [trial(retreat, "int8", 0.05, 8e-5), trial(retreat, "int8", 0.002, 5e-5, dial=5e-5, cost=2.0)]
    assert retreat.rung(trials) is None


def test_what_would_not_be_best_is_not_taken_up_once_something_keeps_the_accuracy(retreat):
    trials = [trial(retreat, "int8", 0.0, 0.001, cost=-2.0), trial(retreat, "int4", 0.05, 0.004, cost=-1.0)]
    assert retreat.rung(trials) is None
    assert asked(retreat.rung([*trials, trial(retreat, "kmeans", 0.05, 0.004, cost=-3.0)]))[0] == "kmeans"


def test_what_is_too_late_is_not_asked_again(retreat):
    trials = [trial(retreat, "int8", 0.05, 0.004), trial(retreat, "mixed", 0.05, None, dial=4e-5, state="late")]
    assert asked(retreat.rung(trials))[0] == "int8"
