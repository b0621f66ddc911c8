from pumice.testing import ScorerContract
from pumice_prune_fpgm import Fpgm


class TestFpgm(ScorerContract):
    strategy = Fpgm
