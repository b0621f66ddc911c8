"""What a searcher owes: proposals that follow from the space and the trials so far, and from nothing else."""

import copy
from collections.abc import Sequence
from typing import Any

from pumice.strategy import Searcher
from pumice.testing.strategy import StrategyContract


class SearcherContract(StrategyContract[Searcher]):
    """Give `space`, and `history` if the searcher reads more than that there were trials."""

    def space(self) -> Any:
        """What is searched."""
        raise NotImplementedError

    def history(self) -> Sequence[Any]:
        """Trials that have been run."""
        return ()

    def test_the_same_trials_lead_to_the_same_proposal(self) -> None:
        one, other = (self.make().propose(self.space(), self.history()) for _ in range(2))
        assert one == other, "a searcher is deterministic: whatever is random comes from a seed among its knobs"

    def test_the_trials_are_left_unchanged(self) -> None:
        history = self.history()
        before = copy.deepcopy(history)
        self.make().propose(self.space(), history)
        assert history == before
