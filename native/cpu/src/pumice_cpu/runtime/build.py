"""Which build of the library, at which level: packed weights and timings belong to one of them."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

from pumice_cpu import native


def build() -> str:
    """The library's checksum and the level in force."""
    return f"{_checksum():08x} {native.level()}"


@cache
def _checksum() -> int:
    from pumice_cpu import _native

    return zlib.crc32(Path(_native.__file__).read_bytes())
