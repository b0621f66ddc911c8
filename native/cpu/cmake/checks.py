"""Build and run the C tests in a special way; exit code 1 where one fails.

    python native/cpu/cmake/checks.py sanitize    address and undefined-behaviour sanitizers, then the thread sanitizer
    python native/cpu/cmake/checks.py arm         for AArch64, under qemu as three processors: NEON alone, with dot
                                                  products, with matrix products too

The thread sanitizer and qemu do not support threads made after a fork: `test_fork` runs elsewhere only.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PROCESSORS = ("cortex-a57", "neoverse-n1", "max")
COMPILER = "aarch64-linux-gnu-gcc"
NO_FORK = ("--exclude-regex", "fork")


def tool(name: str) -> str:
    """The program of this environment, else the one on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


def build(name: str, *options: str) -> Path:
    folder = PACKAGE / "build" / name
    ninja = tool("ninja")
    configure = [tool("cmake"), "-S", PACKAGE, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.run(
        [*configure, "-DPUMICE_EXTENSION=OFF", "-DPUMICE_TESTS=ON", *options], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run([ninja, "-C", folder, "--quiet"], check=True)
    return folder


def run(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
    command = [tool("ctest"), "--test-dir", folder, "--output-on-failure", *options]
    subprocess.run(command, check=True, env={**os.environ, **(environment or {})})


def sanitize() -> None:
    run(build("address", "-DPUMICE_SANITIZE=address,undefined"))
    run(build("thread", "-DPUMICE_SANITIZE=thread"), *NO_FORK)


def arm() -> None:
    missing = [name for name in (COMPILER, "qemu-aarch64") if not shutil.which(name)]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found: install a cross compiler for AArch64 and qemu's user mode")
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_C_COMPILER={COMPILER}")
    folder = build("arm", *target, "-DCMAKE_EXE_LINKER_FLAGS=-static", "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64")
    for processor in PROCESSORS:
        print(f"as {processor}", flush=True)
        run(folder, *NO_FORK, environment={"QEMU_CPU": processor})


if __name__ == "__main__":
    try:
        {"sanitize": sanitize, "arm": arm}[sys.argv[1]]()
    except subprocess.CalledProcessError as failure:
        sys.exit(f"{failure.cmd[0]} failed with exit code {failure.returncode}")
