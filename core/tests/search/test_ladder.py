"""A ladder of pruning that closes in on what the accuracy allows, and settles what else matters on the way."""

import attrs
import numpy as np
import pytest

from pumice.search import Space, Trial
from pumice.search.ladder import CLOSE, MOST, OTHERS, RATES, START, Ladder, most_epochs
from pumice.search.openings import ORIGIN, singles
from pumice.search.trial import Figures
from pumice.steps import Auto
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn

GIVEN = frozenset({Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER, Need.TRAINING, Need.LABELS})
FIGURES = Figures(drop=0.0, low=0.0, high=0.0, latency=1.0, speedup=2.0, file_bytes=1, compression=4.0)


@pytest.fixture(scope="module")
def space():
    return Space.of(tiny_cnn(), GIVEN, {}, {})


def ladder(space, samples=64_000, pass_seconds=1e-3, **limits):
    return Ladder.of(space, tiny_cnn(), Auto(**limits), samples, pass_seconds)


def tried(opening, number, state="measured", drop=0.0):
    return Trial(
        number=number,
        values=opening.proposal.values,
        recipe=opening.proposal.recipe,
        origin=f"{ORIGIN}{opening.reason}",
        state=state,
        figures=attrs.evolve(FIGURES, drop=drop) if state == "measured" else None,
        cost=-float(number),
        violation=0.0,
    )


def climbed(one, loses, trials=()):
    """What the ladder tries on a model that loses so much, by the knobs of a recipe."""
    found = list(trials)
    while len(found) < 100 and (opening := one.rung(found)) is not None:
        found.append(tried(opening, len(found) + 1, drop=loses(opening.proposal.values)))
    return [trial for trial in found if "prune.ratio" in trial.values]


def beyond(allows):
    """Loses nothing up to a ratio of channels, by the passes over the data that repair it."""
    return lambda values: 0.0 if values["prune.ratio"] <= allows(values.get("distil.epochs", 0)) else 0.5


def repaired(one, allows=0.0):
    """The first trial of a ladder that trains."""
    return next(t for t in climbed(one, beyond(lambda passes: allows)) if "distil.epochs" in t.values)


@pytest.mark.parametrize("allows", [0.1, 0.35, 0.62, 0.85])
def test_the_ladder_closes_in_on_what_the_accuracy_allows(space, allows):
    trials = climbed(ladder(space), beyond(lambda passes: allows))
    ratios = list(dict.fromkeys(trial.values["prune.ratio"] for trial in trials))
    assert ratios[0] == START
    assert allows - max(ratio for ratio in ratios if ratio <= allows) <= CLOSE
    assert len(ratios) <= 10
    assert max(ratios) <= MOST


def test_it_climbs_where_there_is_nothing_but_pruning_as_well(space):
    trials = climbed(ladder(attrs.evolve(space, pipelines=(("prune",),))), beyond(lambda passes: 0.5))
    kept = [trial.values["prune.ratio"] for trial in trials if not trial.figures.drop]
    assert 0.5 - max(kept) <= CLOSE


def test_it_refits_first_and_goes_on_with_training_and_then_with_more_of_it(space):
    one = ladder(space, 6_400, pass_seconds=20.0, budget=10.0)
    trials = climbed(one, beyond(lambda passes: 0.2 + passes / 30))
    assert trials[0].values["pipeline"] == "prune > quantize"
    passes = sorted(trial.values.get("distil.epochs", 0) for trial in trials if not trial.figures.drop)
    kept = {
        many: max(
            t.values["prune.ratio"] for t in trials if not t.figures.drop and t.values.get("distil.epochs", 0) == many
        )
        for many in passes
    }
    assert len(kept) >= 3
    assert list(kept.values()) == sorted(kept.values())


def test_it_prunes_repairs_by_the_teacher_and_quantizes_as_was_best_alone(space):
    best = next(o for o in singles(space) if o.proposal.recipe["step"][0]["quantizer"]["name"] == "kmeans")
    trials = climbed(ladder(space), beyond(lambda passes: 0.0), [tried(best, 1)])
    pruned, repaired, quantized = next(t.recipe["step"] for t in trials if len(t.recipe["step"]) == 3)
    assert (pruned["use"], repaired["use"], quantized["use"]) == ("prune", "distil", "quantize")
    assert quantized["quantizer"] == best.proposal.recipe["step"][0]["quantizer"]


def test_few_samples_are_passed_over_more_often(space):
    many, few = (repaired(ladder(space, samples)).values["distil.epochs"] for samples in (64_000, 6_400))
    assert (many, few) == (6, 24)


def test_a_repair_takes_no_more_passes_than_the_budget_allows(space):
    heavy = ladder(space, samples=6_400, pass_seconds=10.0, budget=10.0)
    assert repaired(heavy, allows=0.29).values["distil.epochs"] == 8
    too_heavy = climbed(ladder(space, samples=6_400, pass_seconds=400.0, budget=10.0), beyond(lambda passes: 0.5))
    assert {trial.values["pipeline"] for trial in too_heavy} == {"prune > quantize"}


def test_trainings_have_the_passes_that_the_budget_has_room_for():
    assert most_epochs(Auto(budget=10.0), 6_400, 10.0) == 16
    assert most_epochs(Auto(budget=10.0, workers=4), 6_400, 10.0) == 30
    assert most_epochs(Auto(budget=10.0), 6_400, float("inf")) == 0
    assert most_epochs(Auto(budget=0.0, trials=3), 64_000, 10.0) == 6


def test_a_smaller_network_is_repaired_for_longer_in_the_same_time(space):
    few, many = (repaired(ladder(space, 6_400, 20.0, budget=10.0), allows).values for allows in (0.0, 0.6))
    assert many["prune.ratio"] > few["prune.ratio"]
    assert many["distil.epochs"] > few["distil.epochs"]


def test_where_the_ladder_ends_other_quantizers_that_kept_the_accuracy_take_their_turn(space):
    alone = [tried(single, number) for number, single in enumerate(singles(space), 1)]
    trials = climbed(ladder(space), beyond(lambda passes: 0.35), alone)
    best = max(trial.values["prune.ratio"] for trial in trials if not trial.figures.drop)
    there = [trial.values["quantize.quantizer"] for trial in trials if trial.values["prune.ratio"] == best]
    assert len(set(there)) == 1 + OTHERS


def test_a_quantizer_that_keeps_the_accuracy_where_another_did_not_lets_the_ladder_go_on(space):
    alone = [tried(single, number) for number, single in enumerate(singles(space), 1)]
    careful = alone[-2].values["quantize.quantizer"]

    def loses(values):
        allows = 0.5 if values["quantize.quantizer"] == careful else 0.2
        return 0.0 if values["prune.ratio"] <= allows else 0.5

    trials = climbed(ladder(space), loses, alone)
    assert max(trial.values["prune.ratio"] for trial in trials if not trial.figures.drop) > 0.2 + CLOSE


def test_scorers_are_compared_where_refitting_ends_and_trainings_take_the_best(space):
    def loses(values):
        return 0.5 if values["prune.scorer"] == "fpgm" and values["prune.ratio"] > START else values["prune.ratio"]

    trials = climbed(ladder(space), loses)
    compared = [trial for trial in trials if trial.values["pipeline"] == "prune > quantize"]
    installed = {s.name for s in space.strategies["importance-scorer"]}
    assert {trial.values["prune.scorer"] for trial in compared} == installed - space.choosers("importance-scorer")
    trials = climbed(
        ladder(space), lambda values: values["prune.ratio"] * (0.5 if values["prune.scorer"] == "fpgm" else 1)
    )
    assert {t.values["prune.scorer"] for t in trials if "distil.epochs" in t.values} == {"fpgm"}


@pytest.mark.parametrize("best", [RATES[0], RATES[3]])
def test_the_rate_of_learning_is_settled_by_what_the_first_training_loses(space, best):
    def loses(values):
        distance = abs(RATES.index(values["distil.lr"]) - RATES.index(best)) if "distil.lr" in values else 0
        allows = 0.7 if "distil.lr" in values else 0.4
        return 0.001 * distance if values["prune.ratio"] <= allows else 0.1 + 0.001 * distance

    rates = [t.values["distil.lr"] for t in climbed(ladder(space), loses) if "distil.lr" in t.values]
    assert len(set(rates)) < len(RATES) or best == RATES[0]
    assert rates[-1] == best


def test_with_several_workers_an_interval_is_tried_in_several_places_at_once(space):
    one, trials = ladder(space), []
    for number in range(1, 6):
        trials.append(tried(one.rung(trials), number, state="running"))
    places = sorted([0.0, *(trial.values["prune.ratio"] for trial in trials), MOST])
    assert max(np.diff(places)) < 0.25


def test_a_training_that_would_take_too_long_is_not_begun(space):
    one = ladder(space, 6_400, pass_seconds=10.0, budget=10.0)
    trials = climbed(one, beyond(lambda passes: 0.29))
    plain = [trial for trial in trials if "distil.epochs" not in trial.values]
    assert one.rung(plain, seconds=60.0) is not None
    assert one.rung(plain, seconds=5.0) is None
    quick = attrs.evolve(next(trial for trial in trials if "distil.epochs" in trial.values), seconds=3.0)
    assert one.rung([*plain, quick], seconds=5.0) is not None


def test_the_quantizer_is_chosen_by_what_it_costs_where_pruning_is_to_reach_the_size(space):
    by_name = {o.proposal.values["quantize.quantizer"]: o for o in singles(space)}
    small, fast = (tried(by_name[name], number) for number, name in enumerate(("kmeans", "int8"), 1))
    small = attrs.evolve(small, violation=0.1, cost=-1.0)
    fast = attrs.evolve(fast, violation=0.9, cost=-2.0)
    assert ladder(space, size=10.0).rung([small, fast]).proposal.values["quantize.quantizer"] == "int8"


def test_a_size_that_integers_alone_do_not_reach_begins_with_more_pruning(space):
    assert ladder(space, size=10.0).start > ladder(space, size=2.0).start == START


@pytest.mark.parametrize("state", ["failed", "late"])
def test_where_one_course_cannot_be_had_the_ladder_goes_on_without(space, state):
    one = ladder(space)
    broken = tried(one.rung([]), 1, state=state)
    following = one.rung([broken]).proposal
    assert following.values["pipeline"] != broken.values["pipeline"]


def test_a_ratio_that_takes_nothing_away_is_too_small(space):
    one = ladder(space)
    lost = tried(one.rung([]), 1, drop=0.5)
    nothing = tried(one.rung([lost]), 2, state="failed")
    following = one.rung([lost, nothing]).proposal.values["prune.ratio"]
    assert nothing.values["prune.ratio"] < following < lost.values["prune.ratio"]


def test_no_ratio_is_tried_that_would_not_reach_the_size(space):
    alone = [tried(single, number) for number, single in enumerate(singles(space), 1)]
    trials = climbed(ladder(space, size=16.0), beyond(lambda passes: 0.1), alone)
    assert min(trial.values["prune.ratio"] for trial in trials) >= 1 - (FIGURES.compression / 16.0) ** 0.5


def test_a_rung_that_came_too_late_is_one_that_was_too_high(space):
    one = ladder(space)
    kept = tried(one.rung([]), 1)
    late = tried(one.rung([kept]), 2, state="late")
    following = one.rung([kept, late]).proposal.values
    assert kept.values["prune.ratio"] < following["prune.ratio"] < late.values["prune.ratio"]
    assert following["pipeline"] == late.values["pipeline"]
