"""Environments of their own for peers that are heavy: made once, kept in the cache, named by what is in them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from models.store import cache_folder


class PeerError(RuntimeError):
    """A peer that cannot be had or cannot compute a case; the text is one line."""


def interpreter(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages, made on first use, or what `PUMICE_PEERS_PYTHON` names.

    Raises:
        PeerError: the packages cannot be installed.
    """
    if chosen := os.environ.get("PUMICE_PEERS_PYTHON"):
        return Path(chosen)
    folder = cache_folder() / name
    python, done = folder / "bin" / "python", folder / "packages"
    if done.exists() and done.read_text().split() == list(packages):
        return python
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", *packages]):
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise PeerError(f"the peers cannot be installed: {finished.stderr.strip().splitlines()[-1]}")
    done.write_text("\n".join(packages))
    return python
