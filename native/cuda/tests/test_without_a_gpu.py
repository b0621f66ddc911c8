"""A machine without a GPU: everything imports, and who asks for a GPU hears in one sentence why there is none."""

import subprocess
import sys

import numpy as np
import pytest

from pumice.errors import PumiceError
from pumice.testing.models import tiny_cnn
from pumice_cuda import compiling, device, lowbit, parallel
from pumice_cuda.placing import OnDevice
from pumice_cuda.runtime.session import CudaSession
from pumice_cuda.runtime.strategy import CudaRuntime

WHY = "no NVIDIA driver is installed: install it"
ASKING = {
    "a placement": OnDevice,
    "a runtime's placement": lambda: CudaRuntime().placement(),
    "an open model": lambda: CudaRuntime().open(tiny_cnn()),
    "a session": lambda: CudaSession(tiny_cnn()),
    "a kernel": lambda: compiling.kernel("split", "split"),
    "4-bit weights": lambda: lowbit.pack_affine(np.zeros((64, 16), np.uint8), 1.0),
    "all GPUs": lambda: parallel.in_parallel(print),
    "two GPUs": lambda: parallel.in_parallel(print, gpus=2),
}


@pytest.fixture
def nothing(monkeypatch):
    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem=WHY))


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_who_asks_for_a_gpu_hears_why_there_is_none(nothing, ask):
    with pytest.raises(PumiceError, match=f"^no GPU can be used here: {WHY}$"):
        ask()


def test_one_process_of_a_training_needs_no_gpu(nothing):
    assert parallel.in_parallel(lambda peers: peers, gpus=1) is None


def test_the_plugin_names_its_kernels_and_loads_nothing_of_cuda():
    ask = "import sys, pumice_cuda; list(pumice_cuda.pumice_kernels()), list(pumice_cuda.pumice_runtimes())"
    found = "print([name for name in sys.modules if name.partition('.')[0] in {'cuda', 'cupy', 'cupy_backends'}])"
    assert subprocess.check_output([sys.executable, "-c", f"{ask}; {found}"], text=True).strip() == "[]"
