"""The verdict: settled by what no clock has a part in where costs are close, and given in its time."""

import math

import attrs
import pytest

from pumice.search.trial import Figures, Trial, cost, violation
from pumice.search.verdict import best_of, judge
from pumice.steps import Auto

LIMITS = Auto()
FIGURES = Figures(drop=0.0, low=0.0, high=0.0, latency=1.0, speedup=2.0, file_bytes=100, compression=4.0)


def trial(number, limits=LIMITS, **figures):
    found = attrs.evolve(FIGURES, **figures)
    known = {"cost": cost(limits, found), "violation": violation(limits, found), "model": f"{number}.onnx"}
    return Trial(number=number, values={}, recipe={}, origin="", state="measured", figures=found, **known)


class Laboratory:
    """Measures every candidate as the search did, but for what is given here."""

    def __init__(self, speeds=None, drops=None, **limits):
        self.limits, self.speeds, self.drops = Auto(**limits), speeds or {}, drops or {}
        self.evidence = type("Evidence", (), {"search": 0, "held_out": 1})

    def verify(self, one):
        speedup, drop = self.speeds.get(one.number, one.figures.speedup), self.drops.get(one.number, one.figures.drop)
        ends = {end: getattr(one.figures, end) + drop - one.figures.drop for end in ("low", "high")}
        return attrs.evolve(one.figures, speedup=speedup, drop=drop, **ends), 1.0


@pytest.mark.parametrize("noise", [0.98, 1.0, 1.02])
def test_timings_that_fall_out_a_little_otherwise_lead_to_the_same_winner(noise):
    trials = [trial(1, file_bytes=100), trial(2, file_bytes=99, compression=4.04)]
    found = judge(trials, Laboratory({1: 2.0 / noise, 2: 2.0 * noise}))
    assert found.winner.trial.number == 2


def test_what_is_plainly_better_wins_though_its_file_is_larger():
    trials = [trial(1, file_bytes=100), trial(2, file_bytes=110, speedup=3.0)]
    assert judge(trials, Laboratory()).winner.trial.number == 2


def test_of_equals_the_one_that_was_tried_first_wins():
    assert judge([trial(2), trial(1)], Laboratory()).winner.trial.number == 1
    assert best_of([]) is None


def test_what_keeps_the_limit_with_a_standard_error_to_spare_wins_over_what_just_keeps_it():
    edge = {"drop": 0.0095, "low": 0.0036, "high": 0.0154}
    trials = [trial(1), trial(2, speedup=4.0, **edge), trial(3, speedup=3.0, drop=0.005, low=-0.001, high=0.011)]
    found = judge(trials, Laboratory())
    assert found.winner.trial.number == 3
    assert judge(trials[1:2], Laboratory()).winner.trial.number == 2


def test_where_answers_are_few_the_noise_of_a_candidate_decides_and_not_its_luck():
    def quantized(number, drop, noise, **figures):
        found = trial(number, drop=drop, low=0.0, high=drop + 0.02, **figures)
        return attrs.evolve(found, recipe={"step": [{"use": "quantize"}]}, drop=drop, noise=noise)

    trials = [quantized(1, 0.0095, 0.004, speedup=4.0), quantized(2, 0.004, 0.0005, speedup=3.0)]
    found = judge(trials, Laboratory(drops={1: 0.0}))
    assert found.winner.trial.number == 2
    assert "less sure" in found.reasons()[0]


def test_once_its_time_is_over_and_something_keeps_the_limits_the_others_are_not_measured():
    trials = [trial(number) for number in range(1, 6)]
    assert len(judge(trials, Laboratory(), until=-math.inf).verified) == 1
    assert len(judge(trials, Laboratory()).verified) == 5


def test_what_won_before_is_measured_again_however_many_seem_better_now():
    trials = [trial(number, speedup=2.0 + number) for number in range(3, 20)]
    trials += [trial(1), attrs.evolve(trial(2), won=True)]
    laboratory = Laboratory(drops=dict.fromkeys([1, *range(3, 20)], 0.02))
    found = judge(trials, laboratory)
    assert found.winner.trial.number == 2
    assert len(found.verified) <= 5


def test_between_the_surest_and_what_is_too_bold_here_the_front_is_bisected():
    """Nine recipes lose a little more the more they gain; here everything from the sixth on loses too much."""
    trials = [trial(1, drop=-0.02)]
    for number in range(2, 10):
        drop = 0.0005 * number
        trials.append(trial(number, drop=drop, low=drop - 0.004, high=drop + 0.004, speedup=1.0 + number))
    laboratory = Laboratory(drops=dict.fromkeys(range(6, 10), 0.009))
    found = judge(trials, laboratory)
    assert found.winner.trial.number == 5
    assert len(found.verified) < len(trials)
    assert judge(trials, laboratory, until=-math.inf).winner.trial.number == 9


def test_it_goes_on_while_what_kept_the_limits_in_the_search_does_not_here():
    trials = [trial(number, speedup=9.0 - number) for number in range(1, 9)]
    assert judge(trials, Laboratory(drops=dict.fromkeys(range(1, 8), 0.5))).winner.trial.number == 8


def test_over_its_time_it_looks_at_the_surest_alone_while_nothing_keeps_the_limits():
    trials = [trial(number, speedup=1.0 + number, drop=0.001 * number) for number in range(2, 9)]
    found = judge(trials, Laboratory(drops=dict.fromkeys(range(3, 9), 0.5)), until=-math.inf)
    assert found.winner.trial.number == 2
    assert len(found.verified) == 2


def test_what_compress_makes_by_itself_is_always_looked_at():
    trials = [trial(1, speedup=0.9, drop=0.002), *(trial(number, speedup=9.0 - number) for number in range(2, 9))]
    assert 1 in {one.trial.number for one in judge(trials, Laboratory()).verified}


def test_it_ends_in_its_time_where_nothing_kept_the_limits_in_the_search():
    known = [trial(1, drop=0.5), trial(2, drop=0.6), trial(3, drop=0.7)]
    found = judge(known, Laboratory(), until=-math.inf)
    assert (found.winner, len(found.verified)) == (None, 1)
    assert found.nearest.trial.number == 1
    assert found.sentence().startswith("no recipe meets the limits; the nearest, trial 1, loses 0.5")


def test_the_nearest_is_named_though_another_is_more_certain_of_its_accuracy():
    small = Auto(size=10.0)
    near = trial(1, small, compression=9.0, drop=0.008, high=0.014)
    found = judge([near, trial(2, small, compression=6.0)], Laboratory(size=10.0), until=-math.inf)
    assert found.nearest.trial.number == 1
