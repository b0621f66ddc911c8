"""The CPU plugin: operators computed in C with the best instructions that the machine has, and the runtime `native`.

`pumice_kernels` yields one `Kernel` an operator and type, and has optimizers update weights in C; all compiled code is
loaded when a plan is compiled, never when the plugin is imported. `PUMICE_CPU_ISA` forces an instruction-set level,
`pumice_cpu.native.threads` says how many threads calls use.
"""

from __future__ import annotations

from collections.abc import Iterable

from pumice import hookimpl
from pumice.ops.record import Kernel
from pumice_cpu.runtime.strategy import NativeRuntime


@hookimpl
def pumice_kernels() -> Iterable[Kernel]:
    from pumice_cpu.kernels import all_kernels
    from pumice_cpu.kernels.train import updates

    updates()
    return all_kernels()


@hookimpl
def pumice_runtimes() -> Iterable[type[NativeRuntime]]:
    yield NativeRuntime
