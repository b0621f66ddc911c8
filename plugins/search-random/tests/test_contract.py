from pumice.testing import SearcherContract
from pumice_search_random import Random


class TestRandom(SearcherContract):
    strategy = Random
