"""Launching a kernel on CuPy's current stream.

Arguments are what the kernel's parameters are: a CuPy array passes as its pointer, a NumPy scalar as the C type of its
width (`np.int32(3)`, `np.float32(0.5)`), a `ctypes.Structure` or a tensor map by value, and None as a null pointer. A
bare Python number is refused, since its width would be a guess.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice_cuda import device

if TYPE_CHECKING:
    from cuda.core import Kernel, Stream

Extent = int | tuple[int, ...]
UNASKED_SHARED = 40 << 10
"""Bytes of dynamic shared memory that a block may have without asking; of 48 K, some are the kernel's own."""
_thread = threading.local()
_allowed: dict[Kernel, int] = {}
"""Bytes of dynamic shared memory that each kernel was allowed."""


def launch(
    kernel: Kernel, grid: Extent, block: Extent, *arguments: Any, shared: int = 0, cluster: Extent | None = None,
    overlaps: bool = False, meets: bool = False,
) -> None:  # fmt: skip
    """Queue a kernel.

    Args:
        kernel: from `compiling.kernel`.
        grid: blocks along each axis; a multiple of the cluster. Nothing happens if one is 0.
        block: threads along each axis.
        arguments: as the module says, CuPy arrays contiguous as the kernel wants them.
        shared: bytes of dynamic shared memory a block.
        cluster: blocks along each axis that share memory (compute capability 9.0 and later).
        overlaps: the kernel may start while the one before it ends, where GPUs can, and itself waits where it must.
        meets: its blocks wait for each other, so all of them must fit on the GPU, and run at once or not at all.

    Raises:
        TypeError: an argument whose C type is not clear.
        CUDAError: the driver refuses the launch.
    """
    from cuda.core import LaunchConfig, launch as start

    if math.prod(_axes(grid)) == 0:
        return
    overlaps = overlaps and device.gpu().capability >= device.HOPPER
    if shared > UNASKED_SHARED:
        _allow_shared(kernel, shared)
    if any(_is_structure(a) for a in arguments):
        _start_with_structures(kernel, _axes(grid), _axes(block), arguments, shared, cluster, overlaps)
        return
    config = LaunchConfig(
        grid=clusters(grid, cluster),
        block=block,
        cluster=cluster,
        shmem_size=shared,
        programmatic_stream_serialization=overlaps,
        is_cooperative=meets,
    )
    start(_stream(), config, kernel, *(_argument(a) for a in arguments))


def blocks(elements: int, each: int, most: int = 2**31 - 1) -> int:
    """How many blocks cover some elements, at least one."""
    return max(1, min(most, -(-elements // each)))


def clusters(grid: Extent, cluster: Extent | None) -> Extent:
    """The grid in clusters, which is how cuda.core counts when there are any.

    Raises:
        ValueError: the clusters do not divide the grid.
    """
    if cluster is None:
        return grid
    whole, part = _axes(grid), _axes(cluster)
    if any(w % p for w, p in zip(whole, part, strict=True)):
        raise ValueError(f"clusters of {part} blocks do not divide a grid of {whole}")
    return tuple(w // p for w, p in zip(whole, part, strict=True))


def _axes(extent: Extent) -> tuple[int, int, int]:
    given: Sequence[int] = (extent,) if isinstance(extent, int) else extent
    x, y, z = (*given, 1, 1, 1)[:3]
    return x, y, z


def _argument(value: Any) -> Any:
    if value is None:
        return 0
    if hasattr(value, "__cuda_array_interface__"):
        return value.data.ptr
    if isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic):
        raise TypeError(
            f"argument {value!r} has no C type: pass np.int32({value!r}), np.float32({value!r}) or the like"
        )
    return value


def _is_structure(value: Any) -> bool:
    return isinstance(value, ctypes.Structure) or hasattr(value, "getPtr")


def _start_with_structures(
    kernel: Kernel,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: Sequence[Any],
    shared: int,
    cluster: Extent | None,
    overlaps: bool,
) -> None:
    """As `cuda.core.launch`, which knows no structures but its own: the driver copies each from where it is."""
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes, config.hStream = shared, int(_stream().handle)
    config.attrs = _attributes(cluster, overlaps)
    config.numAttrs = len(config.attrs)
    held = [_in_memory(a) for a in arguments]  # until the driver has copied them
    addresses = (ctypes.c_void_p * len(held))(*(address for address, _ in held))
    (error,) = driver.cuLaunchKernelEx(config, int(kernel.handle), ctypes.addressof(addresses), 0)
    if int(error):
        raise RuntimeError(
            f"the driver refuses the launch of {grid} blocks of {block} threads (CUDA error {int(error)})"
        )


def _attributes(cluster: Extent | None, overlaps: bool) -> list[Any]:
    """What a launch asks for beside its extents."""
    from cuda.bindings import driver

    names, found = driver.CUlaunchAttributeID, []
    if cluster is not None:
        found.append(driver.CUlaunchAttribute())
        found[-1].id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        extent = found[-1].value.clusterDim
        extent.x, extent.y, extent.z = _axes(cluster)
    if overlaps:
        found.append(driver.CUlaunchAttribute())
        found[-1].id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        found[-1].value.programmaticStreamSerializationAllowed = 1
    return found


def _in_memory(value: Any) -> tuple[int, Any]:
    """Where the C value of an argument lies, and what must live as long as that is used."""
    if hasattr(value, "getPtr"):
        return value.getPtr(), value
    if isinstance(value, ctypes.Structure):
        return ctypes.addressof(value), value
    plain = _argument(value)
    array = np.asarray(plain if isinstance(plain, np.generic) else np.uint64(plain))
    return array.ctypes.data, array


def _stream() -> Stream:
    """CuPy's current stream, as cuda.core knows it."""
    import cupy

    if not hasattr(_thread, "ready"):  # a thread that has called nothing of CUDA yet has no context
        cupy.cuda.Device().use()
        _thread.ready = True
    return _wrapped(cupy.cuda.get_current_stream().ptr)


@functools.lru_cache(maxsize=256)
def _wrapped(pointer: int) -> Stream:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(pointer) if pointer else LEGACY_DEFAULT_STREAM


def _allow_shared(kernel: Kernel, size: int) -> None:
    """Let blocks have more dynamic shared memory than any block may without asking, on this and every later launch."""
    from cuda.bindings import driver

    if _allowed.get(kernel, 0) >= size:
        return

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (error,) = driver.cuKernelSetAttribute(attribute, size, kernel.handle, driver.cuCtxGetDevice()[1])
    if int(error):
        raise RuntimeError(
            f"a block of this kernel cannot have {size:,} bytes of shared memory (CUDA error {int(error)})"
        )
    _allowed[kernel] = size
