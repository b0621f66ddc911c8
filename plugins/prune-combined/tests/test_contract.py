from pumice.testing import ScorerContract
from pumice_prune_combined import Auto, Combined


class TestCombined(ScorerContract):
    strategy = Combined


class TestAuto(ScorerContract):
    strategy = Auto
