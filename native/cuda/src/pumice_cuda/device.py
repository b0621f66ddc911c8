"""Whether this machine has a GPU that can be used, and if not, why: one sentence, found without what may hang.

The order of the questions matters. Without a driver some calls of CUDA's libraries never return, so the driver is
looked for first, as a library on disk. Then versions: packages of another version than this was written for, and an
NVRTC older than 13.0 or of another major version, are named before they fail in the middle of something; a driver runs
the cubins of its own CUDA version and of older ones, so the NVRTC in use must not be newer than it by a major version;
CuPy must be built for a major version that the driver runs, and the CUDA runtime and cuBLAS that it finds must be of
that same one; and the GPU must be one for which there are kernels (compute capability 7.5 and later) and that NVRTC
knows. cuDNN is not asked for: none is loaded.

`Probes` are the questions, apart from what is made of the answers, so that every answer can be tried without a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from pumice.errors import PumiceError

OLDEST_CAPABILITY = (7, 5)
"""Turing: the first with the INT8 instructions of the oldest kernels, and the oldest that CUDA 13 compiles for."""
HOPPER = (9, 0)
"""The first that multiplies by warpgroups, and that starts a kernel while the one before it ends."""
ARCHITECTURE_SPECIFIC = frozenset({HOPPER, (10, 0)})
"""Compute capabilities whose own instructions (wgmma, tcgen05) need the architecture's name with an `a`."""
NVRTC = (13, 0)
"""The oldest that the sources are written for, and its major version the only one."""
NVRTC_REMEDY = "pip install 'nvidia-cuda-nvrtc==13.0.*'"
TOOLKIT_REMEDY = "pip install --upgrade 'pumice-cuda[toolkit]'"
_MAJOR_VERSION = 0
"""Of libraryPropertyType in CUDA's library_types.h."""


class NotThere(Exception):
    """A library or a device that was looked for does not exist; the text says what."""


@attrs.frozen(kw_only=True)
class Gpu:
    """One device."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Bytes."""
    multiprocessors: int

    @property
    def architecture(self) -> str:
        """What NVRTC compiles for."""
        return architecture_of(self.capability)


@attrs.frozen(kw_only=True)
class Probes:
    """How to learn what is here. Each raises `NotThere` if there is nothing."""

    driver: Callable[[], tuple[int, int]]
    """The newest CUDA version that the driver runs."""
    nvrtc: Callable[[], tuple[int, int]]
    newest: Callable[[], tuple[int, int]]
    """The newest compute capability that NVRTC compiles for."""
    cupy: Callable[[], int]
    """The CUDA major version for which CuPy is built."""
    libraries: Callable[[], Mapping[str, int]]
    """The CUDA major versions of the libraries that CuPy finds, by name."""
    gpu: Callable[[], Gpu]


@attrs.frozen(kw_only=True)
class Examination:
    """What was found, as far as the questions came."""

    problem: str | None = None
    """Why there is no GPU to use, in one sentence that names the remedy."""
    gpu: Gpu | None = None
    driver: tuple[int, int] | None = None
    nvrtc: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.problem is not None or self.gpu is None:
            return str(self.problem)
        driver, nvrtc = _dotted(self.driver or (0, 0)), _dotted(self.nvrtc or (0, 0))
        return f"{self.gpu.name} ({self.gpu.architecture}), driver for CUDA {driver}, NVRTC {nvrtc}"


def architecture_of(capability: tuple[int, int]) -> str:
    """`sm_80` for (8, 0), `sm_90a` for (9, 0)."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if capability in ARCHITECTURE_SPECIFIC else ''}"


def examine(probes: Probes) -> Examination:
    """Ask in the safe order; the first answer that rules out a GPU ends it."""
    try:
        driver, nvrtc = probes.driver(), probes.nvrtc()
        _written_for("NVRTC", _dotted(nvrtc), NVRTC, NVRTC_REMEDY)
        cupy, libraries = probes.cupy(), probes.libraries()
    except NotThere as missing:
        return Examination(problem=str(missing))
    if driver[0] < nvrtc[0]:
        return Examination(
            driver=driver,
            nvrtc=nvrtc,
            problem=f"the NVIDIA driver runs CUDA {_dotted(driver)} at most and NVRTC compiles for {_dotted(nvrtc)}: "
            f"update the driver",
        )
    if cupy > driver[0]:
        return Examination(
            driver=driver,
            nvrtc=nvrtc,
            problem=f"CuPy is built for CUDA {cupy} and the NVIDIA driver runs {_dotted(driver)} at most: update the "
            f"driver",
        )
    for name, major in libraries.items():
        if major != cupy:
            return Examination(
                driver=driver,
                nvrtc=nvrtc,
                problem=f"CuPy is built for CUDA {cupy} and finds the {name} of CUDA {major}: {TOOLKIT_REMEDY}",
            )
    try:
        gpu = probes.gpu()
    except NotThere as missing:
        return Examination(problem=str(missing), driver=driver, nvrtc=nvrtc)
    problem, has = None, f"the GPU '{gpu.name}' has compute capability {_dotted(gpu.capability)}"
    if gpu.capability < OLDEST_CAPABILITY:
        problem = f"{has} and the kernels need {_dotted(OLDEST_CAPABILITY)} or later"
    elif gpu.capability > (newest := probes.newest()):
        problem = (
            f"{has} and NVRTC {_dotted(nvrtc)} compiles for {_dotted(newest)} at most: install a newer pumice-cuda"
        )
    return Examination(problem=problem, gpu=gpu, driver=driver, nvrtc=nvrtc)


@functools.cache
def examination() -> Examination:
    """What this machine has, asked once a process."""
    return examine(Probes(driver=_driver, nvrtc=_nvrtc, newest=_newest, cupy=_cupy, libraries=_libraries, gpu=_gpu))


def unavailable() -> str | None:
    """Why there is no GPU to use; None if there is one."""
    return examination().problem


def gpu() -> Gpu:
    """The current GPU.

    Raises:
        PumiceError: there is none; the text says why.
    """
    found = examination()
    if found.gpu is None or found.problem is not None:
        raise PumiceError(f"no GPU can be used here: {found.problem}")
    return found.gpu


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


# --- the questions ----------------------------------------------------------------------------------------------------


def _driver() -> tuple[int, int]:
    _library("cuda", "no NVIDIA driver is installed: install the driver of the GPU, version 580 or later")
    import cuda.bindings
    import cuda.core
    from cuda.bindings import driver

    _written_for("cuda-bindings", cuda.bindings.__version__, (13, 0))
    _written_for("cuda-core", cuda.core.__version__, (1, 2))

    error, version = driver.cuDriverGetVersion()
    if int(error):
        raise NotThere(f"the NVIDIA driver does not answer (CUDA error {int(error)}): restart the machine")
    return version // 1000, version % 1000 // 10


def _nvrtc() -> tuple[int, int]:
    _library("nvrtc", f"NVRTC is not installed: {NVRTC_REMEDY}")
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    if int(error):
        raise NotThere(f"NVRTC does not answer (error {int(error)}): {NVRTC_REMEDY}")
    return major, minor


def _newest() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    _, known = nvrtc.nvrtcGetSupportedArchs()
    major, minor = divmod(max(known), 10)
    return major, minor


def _cupy() -> int:
    try:
        import cupy

        _written_for("CuPy", cupy.__version__, (14, 2))
        return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000  # of the runtime that is linked into CuPy
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotThere(f"CuPy cannot be used ({reason}): pip install 'pumice-cuda[toolkit]'") from error


def _libraries() -> dict[str, int]:
    import cupy

    cublas, major = _library("cublas", "cuBLAS is not installed: pip install 'pumice-cuda[toolkit]'"), ctypes.c_int()
    if status := ctypes.CDLL(cublas.abs_path).cublasGetProperty(_MAJOR_VERSION, ctypes.byref(major)):
        raise NotThere(f"cuBLAS does not answer (status {status}): {TOOLKIT_REMEDY}")
    try:
        runtime = int(cupy.cuda.get_local_runtime_version()) // 1000  # of the library that is on this machine
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotThere(f"the CUDA runtime cannot be loaded ({reason}): {TOOLKIT_REMEDY}") from error
    return {"CUDA runtime": runtime, "cuBLAS": major.value}


def _gpu() -> Gpu:
    import cupy

    try:
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise NotThere(f"the NVIDIA driver offers no GPU ({error}): see what nvidia-smi says") from error
    return Gpu(
        name=properties["name"].decode(),
        capability=(properties["major"], properties["minor"]),
        memory=properties["totalGlobalMem"],
        multiprocessors=properties["multiProcessorCount"],
    )


def _written_for(name: str, installed: str, least: tuple[int, int], remedy: str = TOOLKIT_REMEDY) -> None:
    """Raises NotThere if a package is older, or of another major version."""
    major, minor = map(int, installed.split(".")[:2])
    if major != least[0] or minor < least[1]:
        raise NotThere(
            f"{name} {installed} is installed and {_dotted(least)} or a later {least[0]} is needed: {remedy}"
        )


def _library(name: str, otherwise: str) -> Any:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError as error:
        raise NotThere("the package cuda-core is not installed: pip install pumice-cuda again") from error
    try:
        return load_nvidia_dynamic_lib(name)
    except RuntimeError as error:
        raise NotThere(otherwise) from error
