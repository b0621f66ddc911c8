"""The CUDA plugin: operators computed on an NVIDIA GPU, and the runtime `cuda`.

Sources in `csrc` are compiled by NVRTC when they are first used and kept on disk; arrays are CuPy's. Importing the
plugin loads nothing of CUDA. Without a usable GPU it says why (`device.unavailable`) and everything runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from pumice import hookimpl
from pumice.ops.record import Kernel
from pumice_cuda.runtime.strategy import CudaRuntime


@hookimpl
def pumice_kernels() -> Iterable[Kernel]:
    from pumice_cuda.kernels import all_kernels

    return all_kernels()


@hookimpl
def pumice_runtimes() -> Iterable[type[CudaRuntime]]:
    yield CudaRuntime
