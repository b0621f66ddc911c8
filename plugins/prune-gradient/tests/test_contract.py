from pumice.testing import ScorerContract
from pumice_prune_gradient import Gradient


class TestGradient(ScorerContract):
    strategy = Gradient
