"""Every array that is made uninitialised is full of 0xFF: what a kernel forgets to write is NaN, -1 or 255."""

import cupy
import numpy as np
import pytest

collect_ignore = [] if cupy.cuda.runtime.getDeviceCount() > 1 else ["test_two_gpus.py"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    import cupy

    empty, empty_like = cupy.empty, cupy.empty_like

    def poisoning(make):
        def made(*arguments, **options):
            array = make(*arguments, **options)
            if array.size:
                array.reshape(-1).view("u1").fill(0xFF)
            return array

        return made

    monkeypatch.setattr(cupy, "empty", poisoning(empty))
    monkeypatch.setattr(cupy, "empty_like", poisoning(empty_like))


@pytest.fixture
def drawn(rng):
    """Random arrays on the GPU: bytes over their whole range, floats normal."""
    import cupy

    def draw(shape, dtype):
        if dtype in {"int8", "uint8"}:
            limits = np.iinfo(dtype)
            return cupy.asarray(rng.integers(limits.min, limits.max + 1, shape).astype(dtype))
        return cupy.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)

    return draw


@pytest.fixture
def error():
    """The norm of the difference over that of the reference."""
    import cupy

    return lambda found, reference: float(
        cupy.linalg.norm(found.astype(np.float64) - reference) / cupy.linalg.norm(reference)
    )
