"""Whose turn it is."""

from collections import deque

from pumice.search import Figures, Proposal, Trial
from pumice.search.guide import Guide
from pumice.search.openings import Opening
from pumice.testing.searcher import small_space

MAX_DROP = 0.01


class Source:
    """A retreat or a ladder that always has something to try."""

    def __init__(self, name):
        self.name = name

    def rung(self, *_):
        return opening(self.name)


def opening(name):
    return Opening(proposal=Proposal(values={"name": name}, recipe={}), reason=name)


def trial(drop, *, error=0.0, state="measured", **values):
    figures = Figures(
        drop=drop, low=drop, high=drop + error, latency=1.0, speedup=1.0, file_bytes=1, compression=1.0
    )  # fmt: skip
    return Trial(
        number=1,
        values=values,
        recipe={"step": []},
        origin="",
        state=state,
        drop=drop,
        figures=figures if state == "measured" else None,
    )


def turns(*trials, count=6):
    """Who would have the next turns, if all trials to come were late."""
    guide = Guide(
        space=small_space(),
        waiting=deque(opening("single") for _ in range(count)),
        retreat=Source("retreat"),
        ladder=Source("ladder"),
        max_drop=MAX_DROP,
    )
    late = Trial(number=1, values={}, recipe={"step": []}, origin="", state="late")
    return [guide.opening([*trials, *[late] * more], 1.0, lambda _: False).reason for more in range(count)]


def test_as_long_as_too_much_is_lost_nothing_is_pruned():
    assert turns(trial(0.05)) == ["retreat", "retreat", "single", "retreat", "retreat", "single"]


def test_once_the_accuracy_is_kept_singles_and_the_ladder_take_turns():
    found = turns(trial(0.0))
    assert "retreat" not in found
    assert found.count("ladder") == found.count("single") == 3


def test_a_ladder_that_was_plainly_too_high_waits_for_the_quantizers():
    assert "ladder" not in turns(trial(0.0), trial(0.5, state="stopped", **{"prune.ratio": 0.3}))


def test_what_just_keeps_the_accuracy_is_too_little_to_prune():
    assert turns(trial(0.009, error=0.02)) == turns(trial(0.05))
