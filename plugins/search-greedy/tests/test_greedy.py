from pumice.testing.searcher import small_space, tried
from pumice_search_greedy import Greedy


def test_it_goes_on_from_the_best_and_ends():
    space, trials = small_space(), []
    while (proposal := Greedy(step=0.5).propose(space, trials)) is not None:
        before = min(trials, key=lambda t: t.rank, default=None)
        if before is not None:
            changed = {n for n in proposal.values if proposal.values[n] != before.values.get(n)}
            assert len(changed & before.values.keys()) <= 1
        trials.append(tried(len(trials) + 1, proposal))
        assert len(trials) < 500
    assert min(trials, key=lambda t: t.rank).cost < trials[0].cost
