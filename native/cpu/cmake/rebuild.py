"""Rebuild the extension after an edit of the C sources, and put it where this Python imports it from.

    .venv/bin/python native/cpu/cmake/rebuild.py

Incremental, and safe while others rebuild or run: one build at a time (a lock on the build folder), and the new library
replaces the old one by renaming.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
BUILD = PACKAGE / "build" / "dev"


def tool(name: str) -> str:
    """The program of this environment, else the one on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


def main() -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja = tool("ninja")
        configure = [tool("cmake"), "-S", PACKAGE, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if not (BUILD / "build.ninja").exists():
            subprocess.run([*configure, f"-DPython_EXECUTABLE={sys.executable}"], check=True, stdout=subprocess.DEVNULL)
        if subprocess.run([ninja, "-C", BUILD, "--quiet"], check=False).returncode:
            return 1
        built = next(BUILD.glob("_native*.so"))
        target = Path(sysconfig.get_path("platlib")) / "pumice_cpu" / built.name
        target.parent.mkdir(exist_ok=True)
        work = target.with_suffix(f".{os.getpid()}")
        shutil.copy2(built, work)
        work.replace(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
