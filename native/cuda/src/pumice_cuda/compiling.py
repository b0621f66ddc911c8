"""Kernels from sources: NVRTC compiles `csrc/<source>.cu` to machine code (a cubin) for one GPU, when it is first used.

Cubins, not PTX: a driver does not translate PTX that is newer than itself, and machine code says exactly what runs.
What was compiled is kept in memory and on disk (the program cache of cuda.core, under the user's cache folder), keyed
by the source with its headers, the options, the architecture, NVRTC and the driver; a changed byte compiles anew.

A kernel is named as in the source, where it is `extern "C"`, or by the C++ expression of a template: `add<float>`.
Sources include the headers beside them (`csrc/*.cuh`) and nothing of the toolkit, which need not be installed.

Compiling needs no GPU and no driver: `compiled` and `resources` work wherever NVRTC is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice_cuda import device

if TYPE_CHECKING:
    from cuda.core import Kernel, ObjectCode, ProgramOptions

CSRC = Path(__file__).parent / "csrc"
CACHE_BYTES = 256 << 20
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100a")
"""For these every source that is written for them is compiled by the tests."""
_ONLY = re.compile(r"^// architectures: (.+)$", re.MULTILINE)
_SINCE = re.compile(r"^// since: sm_(\d+)$", re.MULTILINE)
_INSTANCES = re.compile(r"^// instances: (.+)$", re.MULTILINE)
_compiling = threading.Lock()


@attrs.frozen(kw_only=True)
class Resources:
    """What the assembler says a kernel takes."""

    registers: int
    """A thread."""
    stack: int
    """Bytes a thread in local memory, spills apart."""
    spills: int
    """Bytes a thread stored and loaded because registers ran out."""
    shared: int
    """Bytes a block of static shared memory."""


def sources() -> list[str]:
    """Names of everything in `csrc` that is compiled by itself."""
    return sorted(path.stem for path in CSRC.glob("*.cu"))


def architectures(source: str) -> tuple[str, ...]:
    """Those of `ARCHITECTURES` for which a source is written."""
    return tuple(arch for arch in ARCHITECTURES if is_for(source, arch))


def is_for(source: str, arch: str) -> bool:
    """Whether a source is written for an architecture: for all, unless it names some.

    `// architectures: sm_90a sm_100a` names these alone, `// since: sm_80` this one and all newer ones.
    """
    text = _text(source)
    if named := _ONLY.search(text):
        return arch in named[1].split()
    oldest = _SINCE.search(text)
    return oldest is None or int(arch.strip("sm_a")) >= int(oldest[1])


def instances(source: str) -> tuple[str, ...]:
    """Of its templates, those that stand for all in tests: of its lines `// instances: add<float>; add<double>`."""
    return tuple(name.strip() for line in _INSTANCES.findall(_text(source)) for name in line.split(";"))


def compiled(source: str, name: str, *, arch: str | None = None, options: tuple[str, ...] = ()) -> ObjectCode:
    """The machine code of a source that holds kernel `name`.

    Args:
        source: the file's name in `csrc`, without `.cu`.
        name: the kernel, `extern "C"`, or the expression of a template's instance.
        arch: `sm_80`, `sm_90a`; None means this machine's GPU.
        options: `-DNAME`, `-DNAME=VALUE`, `--maxrregcount=N`.

    Raises:
        NVRTCError: the compiler's messages.
        PumiceError: why there is no GPU.
    """
    arch = arch or device.gpu().architecture
    with _compiling:
        return _compiled(source, name if "<" in name else "", arch, options)


def kernel(source: str, name: str, *, options: tuple[str, ...] = ()) -> Kernel:
    """Kernel `name` of a source, loaded for the current GPU. Arguments as of `compiled`.

    Raises:
        NotImplementedError: the source is written for other GPUs.
    """
    arch = device.gpu().architecture  # without a driver loading never returns, so this comes first
    return _kernel(source, name, arch, options)


@functools.cache
def _kernel(source: str, name: str, arch: str, options: tuple[str, ...]) -> Kernel:
    if not is_for(source, arch):
        raise NotImplementedError(f"the kernels of '{source}' are not for {arch}")
    return compiled(source, name, arch=arch, options=options).get_kernel(name)


def resources(source: str, *, arch: str, options: tuple[str, ...] = ()) -> dict[str, Resources]:
    """What every kernel of a source and every one of its `instances` takes, by name; compiled anew each time."""
    from cuda.core import Program

    log = io.StringIO()
    program = Program(_text(source), "c++", options=_options(source, arch, options, ptxas_options=["-v"]))
    _run(program, names=instances(source), log=log)
    return dict(_reports(log.getvalue()))


# --- compilation ------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(source: str, template: str, arch: str, options: tuple[str, ...]) -> ObjectCode:
    from cuda.core import ObjectCode, Program
    from cuda.core.utils import make_program_cache_key

    text, chosen, names = _text(source), _options(source, arch, options), (template,) if template else ()
    key = make_program_cache_key(
        code=text,
        code_type="c++",
        options=chosen,
        target_type="cubin",
        name_expressions=names,
        extra_digest=_surroundings(),
    )
    with _cache() as cache:
        code, mangled = cache.get(key), cache.get(key + b"name") if template else b""
        if code is None or mangled is None:
            made = _run(Program(text, "c++", options=chosen), names=names)
            cache[key] = made
            if template:
                cache[key + b"name"] = made.symbol_mapping[template]
            return made
    return ObjectCode.from_cubin(code, name=source, symbol_mapping={template: mangled} if template else {})


def _run(program: Any, *, names: tuple[str, ...] = (), log: io.StringIO | None = None) -> ObjectCode:
    code: ObjectCode = program.compile("cubin", name_expressions=names, logs=log)
    return code


def _options(source: str, arch: str, options: tuple[str, ...], **more: Any) -> ProgramOptions:
    from cuda.core import ProgramOptions

    macros: list[tuple[str, str]] = []
    fields: dict[str, Any] = {}
    for option in options:
        if option.startswith("-D"):
            macro, _, value = option[2:].partition("=")
            macros.append((macro, value or "1"))
        elif option.startswith("--maxrregcount="):
            fields["max_register_count"] = int(option.partition("=")[2])
        else:
            raise ValueError(f"option '{option}' of source '{source}' is not known")
    fields |= {"define_macro": macros or None, "include_path": [str(CSRC)], **more}
    return ProgramOptions(name=f"{source}.cu", std="c++17", arch=arch, **fields)


def _text(source: str) -> str:
    return (CSRC / f"{source}.cu").read_text(encoding="utf-8")


def _surroundings() -> bytes:
    """A digest of what a cubin depends on beside its source, the options and NVRTC: the headers and the driver."""
    digest = hashlib.sha256()
    for header in sorted(CSRC.glob("*.cuh")):
        digest.update(header.name.encode() + b"\0" + header.read_bytes() + b"\0")
    digest.update(repr(device.examination().driver).encode())
    return digest.digest()


def _cache() -> Any:
    from cuda.core.utils import FileStreamProgramCache, InMemoryProgramCache

    try:
        return FileStreamProgramCache(max_size_bytes=CACHE_BYTES)
    except OSError:  # no home to write to: the cubins live as long as the process
        return InMemoryProgramCache()


def _reports(log: str) -> list[tuple[str, Resources]]:
    """The kernels of an assembler's report (`ptxas -v`)."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        stack, stores, loads = map(int, _figures(r"(\d+) bytes stack frame, (\d+) bytes .*?, (\d+) bytes", part))
        (registers,) = _figures(r"Used (\d+) registers", part)
        (shared,) = _figures(r"(\d+) bytes smem", part) or (0,)
        report = Resources(registers=int(registers), stack=stack, spills=stores + loads, shared=int(shared))
        found.append((part.partition("'")[0], report))
    return found


def _figures(pattern: str, text: str) -> tuple[Any, ...]:
    match = re.search(pattern, text)
    return match.groups() if match else ()
