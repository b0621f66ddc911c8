"""Where a search begins: the surest first, and a ladder of pruning that closes in on what the accuracy allows."""

import attrs
import pytest

from pumice.search import Space, Trial
from pumice.search.openings import CLOSE, MOST, ORIGIN, START, Ladder, singles
from pumice.search.trial import Figures
from pumice.steps import Auto
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn

GIVEN = frozenset({Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER, Need.TRAINING, Need.LABELS})
FIGURES = Figures(drop=0.0, low=0.0, high=0.0, latency=1.0, speedup=2.0, file_bytes=1, compression=4.0)


@pytest.fixture(scope="module")
def space():
    return Space.of(tiny_cnn(), GIVEN, {}, {})


def ladder(space, samples=64_000, macs=1000, **limits):
    return Ladder.of(space, tiny_cnn(), Auto(**limits), samples, macs)


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


def climbed(one, allows):
    """The ratios that the ladder tries on a model that allows so much."""
    trials = []
    while len(trials) < 20 and (opening := one.rung(trials)) is not None:
        ratio = opening.proposal.values["prune.ratio"]
        if trials and ratio == trials[-1].values["prune.ratio"]:
            break
        trials.append(tried(opening, len(trials) + 1, drop=0.0 if ratio <= allows else 0.5))
    return [trial.values["prune.ratio"] for trial in trials]


def test_what_compress_does_by_itself_comes_first(space):
    recipes = [opening.proposal.recipe["step"] for opening in singles(space)]
    assert recipes[0][0]["use"] == "quantize"
    assert recipes[0][0]["quantizer"]["name"] == "int8"
    assert len({str(recipe) for recipe in recipes}) == len(recipes) > 3


@pytest.mark.parametrize("allows", [0.1, 0.35, 0.62, 0.85])
def test_the_ladder_closes_in_on_what_the_accuracy_allows(space, allows):
    ratios = climbed(ladder(space), allows)
    assert ratios[0] == START
    kept = [ratio for ratio in ratios if ratio <= allows]
    assert not kept or allows - max(kept) <= CLOSE
    assert len(ratios) <= 8
    assert max(ratios) <= MOST


def test_it_prunes_repairs_by_the_teacher_and_quantizes_as_was_best_alone(space):
    best = next(o for o in singles(space) if o.proposal.recipe["step"][0]["quantizer"]["name"] == "kmeans")
    opening = ladder(space).rung([tried(best, 1)])
    pruned, repaired, quantized = opening.proposal.recipe["step"]
    assert (pruned["use"], repaired["use"], quantized["use"]) == ("prune", "distil", "quantize")
    assert quantized["quantizer"] == best.proposal.recipe["step"][0]["quantizer"]


def test_few_samples_are_passed_over_more_often(space):
    many, few = (ladder(space, samples).rung([]).proposal.values["distil.epochs"] for samples in (64_000, 6_400))
    assert (many, few) == (1, 10)


def test_a_repair_takes_no_more_passes_than_the_budget_allows(space):
    heavy = ladder(space, samples=6_400, macs=50_000_000, budget=10.0)
    assert heavy.rung([]).proposal.values["distil.epochs"] == 1
    too_heavy = ladder(space, samples=6_400, macs=500_000_000, budget=10.0)
    assert too_heavy.rung([]).proposal.values["pipeline"] == "prune > quantize"


def test_a_size_that_integers_alone_do_not_reach_begins_with_more_pruning(space):
    assert ladder(space, size=10.0).start > ladder(space, size=2.0).start == START


@pytest.mark.parametrize("state", ["failed", "late"])
def test_where_a_repair_cannot_be_had_the_ladder_goes_on_without(space, state):
    one = ladder(space)
    broken = tried(one.rung([]), 1, state=state)
    following = one.rung([broken]).proposal
    assert following.values["pipeline"] != broken.values["pipeline"]
    assert one.rung([attrs.evolve(broken, state="running")]) is None
