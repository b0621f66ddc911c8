"""What a searcher owes: points of the space that follow from the space and the trials so far, and nothing else."""

import copy
from collections.abc import Sequence
from typing import Any

import attrs

from pumice.knobs import Choice, Domain, Flag, Float, Int, knob
from pumice.search import Figures, Proposal, Space, Trial
from pumice.steps import Prune, Quantize
from pumice.strategy import ImportanceScorer, Quantizer, Searcher
from pumice.testing.strategy import StrategyContract

TRIALS = 12


@attrs.frozen(kw_only=True)
class _Bits(Quantizer):
    """A quantizer with a knob of every kind, one of which matters only sometimes."""

    name = "bits"
    bits: int = knob(8, Int(2, 8), help="bits of a weight")
    clipped: bool = knob(False, Flag(), help="whether ranges are clipped")
    share: float = knob(0.01, Float(1e-4, 0.5, log=True), help="share that is clipped", when=lambda s: s.clipped)


@attrs.frozen(kw_only=True)
class _Norm(ImportanceScorer):
    """A scorer with a choice."""

    name = "norm"
    norm: str = knob("l1", Choice("l1", "l2"), help="how weights are summed")


def small_space() -> Space:
    """Two steps, alone and after one another, with conditional knobs."""
    return Space(
        pipelines=((Quantize.name,), (Prune.name,), (Prune.name, Quantize.name)),
        strategies={"quantizer": (_Bits,), "importance-scorer": (_Norm,)},
        fixed={},
    )


def tried(number: int, proposal: Proposal) -> Trial:
    """A trial of a proposal, its figures made up: fewer bits and fewer channels are smaller and less accurate."""
    bits, ratio = proposal.values.get("quantize.bits.bits", 32), proposal.values.get("prune.ratio", 0.0)
    figures = Figures(
        drop=0.001 * (32 / bits + 100 * ratio**2),
        low=0.0,
        high=1.0,
        latency=1.0,
        speedup=1.0 + ratio,
        file_bytes=1000,
        compression=32 / bits / (1 - ratio),
    )
    return Trial(
        number=number,
        values=proposal.values,
        recipe=proposal.recipe,
        origin="test",
        state="measured",
        figures=figures,
        cost=-figures.compression,
        violation=max(0.0, figures.drop - 0.02),
    )


class SearcherContract(StrategyContract[Searcher]):
    """Nothing need be given; `space` and `history` may be."""

    def space(self) -> Any:
        """What is searched."""
        return small_space()

    def history(self) -> Sequence[Any]:
        """Trials that have been run: here, those that the searcher itself asked for."""
        trials: list[Trial] = []
        while len(trials) < TRIALS and (proposal := self.make().propose(self.space(), trials)) is not None:
            trials.append(tried(len(trials) + 1, proposal))
        return trials

    def test_the_same_trials_lead_to_the_same_proposal(self) -> None:
        one, other = (self.make().propose(self.space(), self.history()) for _ in range(2))
        assert one == other, "a searcher is deterministic: whatever is random comes from a seed among its knobs"

    def test_the_trials_are_left_unchanged(self) -> None:
        history = self.history()
        before = copy.deepcopy(history)
        self.make().propose(self.space(), history)
        assert history == before

    def test_what_it_proposes_lies_in_the_space(self) -> None:
        space = self.space()
        for trial in self.history():

            def choose(name: str, domain: Domain, values: Any = trial.values) -> Any:
                complaint = domain.check(values[name])
                assert complaint is None, f"{name} = {values[name]!r} {complaint}"
                return values[name]

            assert space.walk(choose) == Proposal(values=trial.values, recipe=trial.recipe)

    def test_it_tries_different_recipes(self) -> None:
        history = self.history()
        assert len({repr(trial.recipe) for trial in history}) > len(history) // 2
