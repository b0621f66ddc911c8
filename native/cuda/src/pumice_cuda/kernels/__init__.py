"""The operators that run on the GPU: one module a family, each with `KERNELS`, a tuple of records.

A module here says which nodes it accepts and hands CuPy arrays to the family's functions; it imports nothing of CUDA at
its top. Every record's device is "cuda".
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from pumice.ops.record import Kernel, Link


def all_kernels() -> Iterator[Kernel]:
    """The records of every module of this package."""
    for found in pkgutil.iter_modules(__path__):
        for kernel in importlib.import_module(f"{__name__}.{found.name}").KERNELS:
            fuse = None if kernel.fuse is None else _placed(kernel.fuse)
            yield attrs.evolve(kernel, device="cuda", available=_available, variant=_variant, fuse=fuse)


Fused = Callable[..., Any]


def _placed(fuse: Callable[[Sequence[Link]], Fused | None]) -> Callable[[Sequence[Link]], Fused | None]:
    """A chain runs at once where its arrays are on the GPU, and one by one where the kernel does not take them."""

    def find(links: Sequence[Link]) -> Fused | None:
        from pumice_cuda.placing import UNSUPPORTED, Brought
        from pumice_cuda.transfers import on_device

        run, bring = fuse(links), Brought(_on_host(links))
        if run is None:
            return None

        def call(*arrays: Any) -> Any:
            if not on_device(arrays[0]):
                return NotImplemented
            try:
                return run(*bring(arrays))
            except UNSUPPORTED:
                return NotImplemented

        return call

    return find


def _on_host(links: Sequence[Link]) -> tuple[int, ...]:
    """Which of a chain's inputs the CPU reads."""
    from pumice_cuda.placing import HOST_INPUTS

    inputs = [(link.node, i) for link in links for i in range(len(link.constants)) if i != link.at]
    return tuple(
        at for at, (node, i) in enumerate(inputs) if not node.domain and i in HOST_INPUTS.get(node.op_type, ())
    )


def _available() -> str | None:
    from pumice_cuda import device

    return device.unavailable()


def _variant() -> str:
    from pumice_cuda import device

    return str(device.examination())
