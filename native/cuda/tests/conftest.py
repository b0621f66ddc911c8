"""Tests in `gpu/` run where a GPU is; elsewhere they are not collected. `gpu` stands in for one."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pumice.ops.gradient import SUMS
from pumice.ops.matmul import MULTIPLIERS
from pumice.ops.updates import FUSED
from pumice_cuda import device, placing

collect_ignore = [] if device.unavailable() is None else ["gpu"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def gpu(monkeypatch):
    """The fake CuPy in the place of CuPy."""
    spec = importlib.util.spec_from_file_location("fake_cupy", Path(__file__).with_name("fake_cupy.py"))
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem="CuPy is a stand-in"))
    monkeypatch.setattr(placing, "_claim", lambda: None)
    for fused in (MULTIPLIERS, SUMS, FUSED):  # what a test on a real GPU may have left here
        monkeypatch.delitem(fused, "cupy", raising=False)
    module = fake.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", fake.special())
    module.looks = fake.looks
    return module


@pytest.fixture(scope="module")
def quantized():
    """A small network of 8-bit integers, with Q and DQ."""
    import pumice
    from pumice.data import open_dataset
    from pumice.testing.models import random_feeds, tiny_cnn

    model = tiny_cnn()
    samples = {"x": np.concatenate([feeds["x"] for feeds in random_feeds(8)])}
    recipe = {"step": [{"use": "quantize", "quantizer": {"name": "int8"}}]}
    return pumice.compress(model, open_dataset(samples, model), recipe, measure=False).model
