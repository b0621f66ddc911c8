"""The plan as a runtime: with the kernels that are installed, or in NumPy alone.

The reference is slow, readable, and the definition of truth. With kernels a plan's floats differ from it in their last
bits, within each kernel's tolerance, and from machine to machine, as instruction sets sum in different orders; on one
machine they are the same at any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from numpy.typing import NDArray

from pumice.registry import Registry, registry
from pumice.strategy import Runtime, Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.ops.record import Kernel
    from pumice.plan import Plan


@attrs.frozen(kw_only=True)
class ReferenceRuntime(Runtime):
    """Core's own plan over NumPy: always there, exact by definition, slow."""

    name = "reference"
    rank = 0

    def open(
        self, model: ir.Model | Path, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> Session:
        import numpy as np

        from pumice.plan import compile_plan

        plan = compile_plan(_loaded(model), outputs, kernels=())
        return _PlanSession(plan, f"pumice reference runtime, NumPy {np.__version__}")


@attrs.frozen(kw_only=True)
class PlanRuntime(Runtime):
    """Core's own plan with the kernels that are installed: quick where pumice-cpu is.

    `threads` holds for the kernels; what runs in NumPy follows NumPy's own settings.
    """

    name = "plan"
    rank = 1

    def available(self) -> str | None:
        if all(kernel.available() for kernel in registry().kernels if kernel.device == "cpu"):
            return "no kernels are installed that run here; pip install pumice-cpu, or use the runtime 'reference'"
        return None

    def open(
        self, model: ir.Model | Path, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> Session:
        from pumice.plan import compile_plan

        plan = compile_plan(_loaded(model), outputs)
        kernels = "; ".join(f"{origin}: {what}" for origin, what in installed_kernels(registry(), "cpu").items())
        limited = {k.limited for k in registry().kernels if k.device == "cpu" and k.available() is None}
        limits = () if threads is None else tuple(partial(limit, threads) for limit in limited)
        return _PlanSession(plan, f"pumice plan ({kernels})", limits)


def installed_kernels(installed: Registry, device: str | None = None) -> dict[str, str]:
    """By distribution, how many of its kernels (of one device) run on this machine, and which variant of them."""
    by_origin: dict[str, list[Kernel]] = {}
    for origin, kernel in installed.kernel_origins:
        if device is not None and kernel.device != device:
            continue
        by_origin.setdefault(str(origin), []).append(kernel)
    found = {}
    for name, kernels in by_origin.items():
        usable = [kernel for kernel in kernels if kernel.available() is None]
        variants = sorted({kernel.variant() for kernel in usable} - {""})
        refusals = sorted({reason for kernel in kernels if (reason := kernel.available())})
        found[name] = ", ".join([f"{len(usable)} of {len(kernels)} kernels", *variants, *refusals])
    return found


def _loaded(model: ir.Model | Path) -> ir.Model:
    from pumice.model import load

    return load(model) if isinstance(model, str | Path) else model


@attrs.frozen
class _PlanSession:
    plan: Plan
    description: str
    limits: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with ExitStack() as held:
            for limit in self.limits:
                held.enter_context(limit())
            return self.plan.run(feeds)
