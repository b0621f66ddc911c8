"""The doctor: what is installed, what this machine can do, what is broken and how to mend it.

`examine()` only looks: it opens no model and computes nothing, so it also works when half of the installation does not.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import attrs

from pumice.cores import usable_cores
from pumice.registry import Registry, registry
from pumice.strategy import Runtime

CPU_FEATURES = (
    "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that decide how fast a compressed model runs, as /proc/cpuinfo spells them."""


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that is wrong."""

    what: str
    remedy: str
    details: str = ""
    """The traceback, when there is one."""


@attrs.frozen(kw_only=True)
class Examination:
    """The state of an installation on a machine."""

    versions: dict[str, str]
    """Python, pumice and its dependencies."""
    machine: dict[str, Any]
    plugins: dict[str, str]
    """Distribution by entry point."""
    runtimes: dict[str, str]
    """`available`, or why not, by runtime."""
    kernels: dict[str, str]
    """By distribution, what of its kernels this machine runs."""
    advice: tuple[str, ...]
    """Nothing is broken, but this is worth knowing."""
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "healthy": not self.findings}


def examine(installed: Registry | None = None) -> Examination:
    """Look at the process-wide registry, or the one given."""
    installed = installed or registry()
    versions, missing = _versions()
    runtimes, failing = _runtimes(installed)
    kernels, unusable = _kernels(installed)
    broken = [
        Finding(what=f"plugin '{b.origin.entry_point}' ({b.origin}): {b.reason}", remedy=b.remedy, details=b.traceback)
        for b in installed.broken
    ]
    clashes = [Finding(what=clash, remedy="uninstall one of the two") for clash in installed.clashes]
    machine = _machine()
    return Examination(
        versions=versions,
        machine=machine,
        plugins={origin.entry_point: str(origin) for origin in installed.plugins},
        runtimes=runtimes,
        kernels=kernels,
        advice=tuple(_advice(installed, runtimes, machine["cpu_features"])),
        findings=(*missing, *broken, *clashes, *failing, *unusable),
    )


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Those of `CPU_FEATURES` that the CPU and the kernel offer; empty where the machine does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    flags = next(
        (line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))), []
    )
    return tuple(feature for feature in CPU_FEATURES if feature in flags)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's own name for itself, or the architecture."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_features": list(cpu_features()),
        "cpus_usable": len(usable_cores()),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
    }


def _versions() -> tuple[dict[str, str], list[Finding]]:
    """Versions of what pumice requires, and what of it is missing."""
    found = {"python": f"{platform.python_version()} ({sys.executable})"}
    missing = []
    names = [
        "pumice",
        *(_requirement(text) for text in importlib.metadata.requires("pumice") or [] if "extra ==" not in text),
    ]
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(Finding(what=f"the package '{name}' is not installed", remedy=f"pip install {name}"))
    return found, missing


def _requirement(text: str) -> str:
    """The name in `name>=1.0,<2; marker`."""
    return "".join(c if c.isalnum() or c in "-_." else " " for c in text).split()[0]


def _runtimes(installed: Registry) -> tuple[dict[str, str], list[Finding]]:
    state, failing = {}, []
    for name, runtime in installed.strategies(Runtime.kind).items():
        assert issubclass(runtime, Runtime)
        try:
            reason = runtime.configure({}).available()
        except Exception as error:
            import traceback

            origin = installed.origin(runtime)
            reason = f"its check failed with {type(error).__name__}: {error}"
            remedy = f"pip install --upgrade {origin.distribution}, or PUMICE_DISABLE_PLUGINS={origin.entry_point}"
            failing.append(
                Finding(what=f"runtime '{name}' ({origin}): {reason}", remedy=remedy, details=traceback.format_exc())
            )
        state[name] = reason or "available"
    return state, failing


def _kernels(installed: Registry) -> tuple[dict[str, str], list[Finding]]:
    from pumice.measure.plan_runtime import installed_kernels

    try:
        return installed_kernels(installed), []
    except Exception as error:
        import traceback

        remedy = "pip install --upgrade the package that the traceback names, or PUMICE_DISABLE_PLUGINS=<its plugin>"
        return {}, [Finding(what=f"kernels do not load: {error}", remedy=remedy, details=traceback.format_exc())]


def _advice(installed: Registry, runtimes: dict[str, str], features: list[str]) -> list[str]:
    found = []
    if not installed.strategies("quantizer"):
        found.append("No quantizer is installed, so nothing can be compressed: pip install pumice-quant-int8.")
    if not any(state == "available" for name, state in runtimes.items() if name != "reference"):
        found.append("Only the slow reference runtime works here: pip install pumice-runtime-ort onnxruntime.")
    found += [
        f"Plugin '{cost.origin.entry_point}' ({cost.origin}) loads {', '.join(cost.heavy)} when it is imported "
        f"({cost.seconds:.1f} s at every start): ask its author to import that where it is used."
        for cost in installed.imports
        if cost.heavy
    ]
    x86 = "avx2" in features
    if x86 and not {"avx512_vnni", "avx_vnni"} & set(features):
        found.append(
            "This CPU has no VNNI instructions: 8-bit models may saturate in 16-bit sums and gain little speed; "
            "quantize with --target ort-cpu-no-vnni."
        )
    return found
