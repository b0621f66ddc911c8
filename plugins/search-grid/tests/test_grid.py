import itertools

from pumice.testing.searcher import small_space, tried
from pumice_search_grid import Grid


def test_it_ends_when_every_recipe_was_tried_once():
    space, trials = small_space(), []
    for number in itertools.count(1):
        proposal = Grid(points=2).propose(space, trials)
        if proposal is None:
            break
        trials.append(tried(number, proposal))
    quantized = 2 * (1 + 2)  # bits, and either unclipped or two shares
    pruned = 2 * 2 * 2 * 2  # ratio, scope, recovery and norm
    assert len(trials) == quantized + pruned + quantized * pruned
    assert len({repr(trial.recipe) for trial in trials}) == len(trials)
