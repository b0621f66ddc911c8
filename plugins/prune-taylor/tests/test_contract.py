from pumice.testing import ScorerContract
from pumice_prune_taylor import Taylor


class TestTaylor(ScorerContract):
    strategy = Taylor
