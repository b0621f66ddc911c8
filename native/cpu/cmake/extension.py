"""Writes the C source of the extension `pumice_cpu._native` from the families' `api.h` (cffi, API mode).

An `api.h` is a plain C header: lines of the preprocessor are dropped before cffi reads it, so it holds declarations
only and constants as `enum`s.
"""

import sys
from pathlib import Path

from cffi import FFI


def declarations(header: Path) -> str:
    """The header without what the preprocessor would consume."""
    return "\n".join(line for line in header.read_text().splitlines() if not line.lstrip().startswith("#"))


def main(target: Path, headers: list[Path]) -> None:
    ffi = FFI()
    for header in headers:
        ffi.cdef(declarations(header))
    includes = "\n".join(f'#include "{header.parent.name}/{header.name}"' for header in headers)
    ffi.set_source("pumice_cpu._native", includes, py_limited_api=True)
    ffi.emit_c_code(str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
