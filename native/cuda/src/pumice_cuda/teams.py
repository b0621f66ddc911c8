"""How rows are divided among threads, and what the sources call types: csrc/teams.cuh and elements.cuh from outside.

A team, a warp or a whole block, has a row. Its threads read 16 bytes at a time where every row begins on such a bound,
and keep the row in registers where it fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice_cuda.launching import blocks

if TYPE_CHECKING:
    import cupy

ACCESS = 16
"""Bytes that a thread reads or writes at once."""
TYPES = {
    "float32": "float", "float16": "float16", "bfloat16": "bfloat16", "uint8": "unsigned char", "int8": "signed char",
}  # fmt: skip
FLOATS = ("float32", "float16", "bfloat16")
KEPT = 32
"""Elements of a row that a thread keeps in registers at most."""
WARP, BLOCK = 32, 128
"""Threads of the smallest team, and of a block of such teams."""
TEAMS = {WARP: 4 * ACCESS, 64: 2 * ACCESS, 128: 2 * ACCESS, 256: None, 1024: None}
"""Threads, and the bytes that each reads at most: small teams leave long rows to larger ones."""


@attrs.frozen(kw_only=True)
class Team:
    """Who has a row."""

    wide: int
    """Elements of an access."""
    threads: int
    """Of the team: a warp, or a whole block."""
    vectors: int
    """Accesses of a thread to its row; 0 where the row is too long to keep."""

    @property
    def arguments(self) -> str:
        """Of a kernel's template, after the type."""
        return f"{self.wide}, {self.threads}, {self.vectors}"

    @property
    def block(self) -> int:
        """Threads of a block, which one team fills or several."""
        return self.threads if self.threads > WARP else BLOCK

    def grid(self, rows: int) -> int:
        """Blocks, one team to a row."""
        return blocks(rows, self.block // self.threads)


def team_of(columns: int, itemsize: int, *, aligned: bool = True) -> Team:
    """The smallest team that keeps a row of so many elements, each of its threads no more than it should."""
    widest = ACCESS // itemsize
    wide = widest if aligned and columns % widest == 0 else 1
    accesses = -(-columns // wide)
    for threads, most in TEAMS.items():
        vectors = 1 << (-(-accesses // threads) - 1).bit_length()
        if vectors * wide <= KEPT and (most is None or vectors * wide * itemsize <= most):
            return Team(wide=wide, threads=threads, vectors=vectors)
    return Team(wide=wide, threads=max(TEAMS), vectors=0)


def aligned(*arrays: Any) -> bool:
    """Whether all begin on the bound of an access; None does."""
    return all(a is None or a.data.ptr % ACCESS == 0 for a in arrays)


def type_name(array: cupy.ndarray) -> str:
    """The type of the elements in the sources.

    Raises:
        ValueError: there is none.
    """
    name = TYPES.get(array.dtype.name)
    if name is None:
        raise ValueError(f"an array of {array.dtype} has no kernel; use one of {', '.join(TYPES)}")
    return name


def truth(value: bool) -> str:
    """As an argument of a kernel's template."""
    return str(value).lower()


def floats(array: cupy.ndarray, what: str) -> cupy.ndarray:
    """The array, contiguous.

    Raises:
        ValueError: its type is not float32, float16 or bfloat16.
    """
    if array.dtype.name not in FLOATS:
        raise ValueError(f"{what} is of type {array.dtype}; this kernel takes {', '.join(FLOATS)}")
    return contiguous(array)


def contiguous(array: cupy.ndarray, dtype: Any = None) -> cupy.ndarray:
    """The array without gaps, in its shape: `cupy.ascontiguousarray` gives a number an axis."""
    return array.astype(dtype or array.dtype, order="C", copy=False)


def parameter(value: Any, dtype: Any = np.float32) -> cupy.ndarray | None:
    """A scale, an offset or a bias as a flat array on the device; None stays."""
    import cupy

    return None if value is None else cupy.ascontiguousarray(cupy.asarray(value, dtype)).reshape(-1)
