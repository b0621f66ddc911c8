from pumice.testing import ScorerContract
from pumice_prune_activation import Activation


class TestActivation(ScorerContract):
    strategy = Activation
