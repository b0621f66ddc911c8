from pumice.testing import ScorerContract
from pumice_prune_magnitude import Magnitude


class TestMagnitude(ScorerContract):
    strategy = Magnitude
