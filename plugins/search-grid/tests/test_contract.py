from pumice.testing import SearcherContract
from pumice_search_grid import Grid


class TestGrid(SearcherContract):
    strategy = Grid
