from pumice.testing import SearcherContract
from pumice_search_greedy import Greedy


class TestGreedy(SearcherContract):
    strategy = Greedy
