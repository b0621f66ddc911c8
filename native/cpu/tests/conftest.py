"""Every kernel is tested at every level that this machine has, with one to four threads.

A test that takes `level` runs once a level, with that level in force; `threads` runs it with 1 to 4 threads. `gave`
says afterwards which level's code computed.
"""

import numpy as np
import pytest

from pumice_cpu import native


def pytest_generate_tests(metafunc):
    if "level" in metafunc.fixturenames:
        metafunc.parametrize("level", native.levels(), indirect=True)
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [1, 2, 3, 4])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Timings of tests are nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUMICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def level(request):
    """The name of the level in force."""
    with native.using_level(request.param):
        native.forget_runs()
        yield request.param


@pytest.fixture
def gave(level):
    """`gave(slot, "scalar", "avx2", ...)`: the strongest of these levels that `level` includes is the one that ran."""
    lineage = [level, *native.ancestors(level)]

    def check(slot, *levels):
        expected = next(name for name in lineage if name in levels)
        assert native.ran(slot) == expected

    return check


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def misaligned():
    """A copy of an array that begins a given number of elements past a 64-byte boundary."""

    def move(array, elements=1):
        room = np.empty(array.size + 128, array.dtype)
        start = (-room.ctypes.data % 64) // array.itemsize + elements
        view = room[start : start + array.size].reshape(array.shape)
        view[...] = array
        return view

    return move
