from pumice.testing import ScorerContract
from pumice_prune_random import Random


class TestRandom(ScorerContract):
    strategy = Random
