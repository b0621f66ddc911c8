"""Which recipe is better: limits first, then what is to be made small."""

import attrs
import pytest
from hypothesis import given, strategies as st

from pumice.search.trial import TARGET, Figures, Trial, broken_limits, cost, front, tolerable, violation
from pumice.search.verdict import holm
from pumice.steps import Auto

GOOD = Figures(
    drop=0.001, low=0.0, high=0.002, latency=2.0, speedup=3.0, file_bytes=250, compression=4.0, memory=10_000_000
)


def trial(number, **changes):
    return Trial(
        number=number,
        values={},
        recipe={},
        origin="test",
        state="measured",
        figures=attrs.evolve(GOOD, **changes),
        cost=-number,
        violation=0.0,
    )


@pytest.mark.parametrize(
    "limits", [{}, {"latency": 2.0}, {"speedup": 3.0}, {"size": 4.0}, {"memory": 10.0}, {"max_drop": 0.001}]
)
def test_figures_that_keep_a_limit_break_nothing(limits):
    assert violation(Auto(**limits), GOOD) == 0.0
    assert broken_limits(Auto(**limits), GOOD) == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"latency": 1.0}, "takes 2 ms"),
        ({"speedup": 6.0}, "3.00x faster"),
        ({"size": 8.0}, "4.00x smaller"),
        ({"memory": 5.0}, "needs 10 MB"),
        ({"max_drop": 0.0005}, "loses 0.0010"),
    ],
)
def test_a_broken_limit_counts_the_more_the_further_it_is_broken_and_is_said(limits, said):
    (name, value), *_ = limits.items()
    further = {name: value / 2 if name in ("latency", "memory", "max_drop") else value * 2}
    assert 0.0 < violation(Auto(**limits), GOOD) < violation(Auto(**further), GOOD)
    (sentence,) = broken_limits(Auto(**limits), GOOD)
    assert said in sentence


def test_times_that_a_measurement_cannot_tell_apart_cost_the_same():
    auto = Auto(goal="balanced")
    assert cost(auto, GOOD) == cost(auto, attrs.evolve(GOOD, speedup=3.02))
    assert cost(auto, GOOD) > cost(auto, attrs.evolve(GOOD, speedup=4.0))


def test_the_goal_says_what_counts():
    small, fast = attrs.evolve(GOOD, compression=8.0), attrs.evolve(GOOD, speedup=6.0)
    assert cost(Auto(goal="size"), small) < cost(Auto(goal="size"), fast)
    assert cost(Auto(goal="latency"), fast) < cost(Auto(goal="latency"), small)


figures = st.tuples(*[st.floats(0.01, 10)] * 3)


@given(st.lists(figures, min_size=1, max_size=12))
def test_nothing_beats_a_trial_of_the_front_and_something_of_it_beats_every_other(points):
    trials = [trial(n, drop=d, speedup=s, compression=c) for n, (d, s, c) in enumerate(points)]
    best = front(trials)

    def beats(a, b):
        ours, theirs = ((t.figures.drop, -t.figures.speedup, -t.figures.compression) for t in (a, b))
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    assert not any(beats(other, one) for one in best for other in trials)
    for other in trials:
        assert other in best or any(beats(one, other) or one.figures == other.figures for one in best)


def test_what_became_slower_or_larger_is_called_so():
    worse = attrs.evolve(trial(1).figures, speedup=0.5, compression=0.25)
    assert worse.gains == "2.00x slower, 4.00x larger"
    assert attrs.evolve(worse, speedup=2.0, compression=1.0).gains == "2.00x faster, 1.00x smaller"


def test_a_trial_survives_being_written_down():
    one = trial(3)
    assert Trial.from_json(one.to_json()) == one


def test_holm_corrects_step_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_a_corrected_p_is_never_smaller_and_keeps_the_order(ps):
    corrected = holm(ps)
    assert all(0 <= p <= c <= 1 for p, c in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [corrected[i] for i in order] == sorted(corrected)


def quantized(drop, noise, error=0.02):
    """A recipe that only quantizes; the standard error of its drop as half of 300 answers have it."""
    found = trial(1, drop=drop, low=drop, high=drop + error)
    return attrs.evolve(found, recipe={"step": [{"use": "quantize"}]}, drop=drop, noise=noise)


def test_all_recipes_together_tell_what_noise_is_tolerable():
    assert tolerable([quantized(0.01, 0.004)], 0.01) == pytest.approx(0.004 * TARGET**2)
    assert tolerable([quantized(0.012, 0.004), quantized(0.008, 0.004)], 0.01) == pytest.approx(0.004 * TARGET**2)
    assert tolerable([quantized(0.01, 0.004), quantized(0.5, 0.1)], 0.01) == pytest.approx(0.004 * TARGET**2)


def test_where_nothing_is_lost_any_noise_is_tolerable():
    assert tolerable([], 0.01) == tolerable([quantized(0.0, 0.004)], 0.01) == float("inf")


@pytest.mark.parametrize(("drop", "noise", "sure"), [(0.008, 0.001, True), (0.0, 0.003, False), (0.02, 0.001, False)])
def test_few_answers_are_judged_by_their_noise(drop, noise, sure):
    assert quantized(drop, noise).sure(0.01, 0.002) is sure


@pytest.mark.parametrize(("drop", "sure"), [(0.004, True), (0.0095, False)])
def test_many_answers_speak_for_themselves(drop, sure):
    assert quantized(drop, 0.001, error=0.004).sure(0.01, 0.002) is sure
    assert quantized(drop, 0.1, error=0.004).sure(0.01, 0.002) is sure
