from pumice.testing import ScorerContract
from pumice_prune_reconstruction import Reconstruction


class TestReconstruction(ScorerContract):
    strategy = Reconstruction
