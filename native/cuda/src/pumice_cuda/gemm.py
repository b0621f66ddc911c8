"""Matrix products A B' on the GPU with a fused epilogue: A (m, k), B (n, k), the rows of both contiguous.

Integers of 8 bits are summed exactly in 32; float16 and bfloat16 in float32. float32 is cut to TF32 (10 bits of
mantissa) as it is multiplied. With precision `float32` it is made of three such products, whose sums are rounded as
float32's are: the result is off by less than 1e-6 of its norm. Hopper has a kernel of its own for all others
(`csrc/gemm_sm90.cu`), Ampere and later share one, Turing multiplies bytes. A matrix whose rows do not begin and end at
multiples of 16 bytes is copied first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from pumice_cuda import device, tensor_maps
from pumice_cuda.compiling import kernel
from pumice_cuda.epilogue import INSTRUCTIONS, PLAIN, WIDE, Epilogue
from pumice_cuda.launching import launch

if TYPE_CHECKING:
    import cupy

ELEMENTS = {"int8": "s8", "uint8": "u8", "float16": "f16", "bfloat16": "bf16", "float32": "tf32"}
STEP_BYTES = 128
SHARED, RESERVED = 228 << 10, 1 << 10
"""Bytes of shared memory of a multiprocessor of Hopper, and what it keeps of them for itself with every block."""
MOST_DIVIDED = 1 << 20
"""Results of a product whose K is divided: few enough to leave multiprocessors idle otherwise."""
PART_BYTES = 32
"""Of K, that one matrix instruction takes; four make a step."""
AMPERE = (8, 0)
AMPERE_TILE, AMPERE_NARROW, AMPERE_THREADS = 128, 64, 256
AMPERE_SHARED, AMPERE_STEP_BYTES = 64 << 10, 64
TURING_TILE = 64
Precision = Literal["tf32", "float32"]


@attrs.frozen(kw_only=True)
class Tiling:
    """How Hopper's loop divides a product; see csrc/mainloop_sm90.cuh."""

    consumers: int
    """Warpgroups with 64 rows each."""
    width: int
    """Columns of a tile: 64, 128 or 256."""
    splits: int = 1
    """Blocks of a cluster that divide K."""
    together: int = 1
    """Blocks of a multiprocessor, which copy, multiply and finish at different times."""

    @property
    def height(self) -> int:
        return 64 * self.consumers

    @property
    def stages(self) -> int:
        """Buffers that fit beside the sums that are exchanged."""
        return min(8, (SHARED // self.together - RESERVED - 1024 - self._beside) // self._stage)

    @property
    def shared(self) -> int:
        return 1024 + self.stages * self._stage + self._beside

    @property
    def _stage(self) -> int:
        """Rows of A and B and two barriers."""
        return (self.height + self.width) * STEP_BYTES + 16

    @property
    def _beside(self) -> int:
        """Scale, bias, offset and factor of the columns for each consumer."""
        return 16 * self.consumers * self.width

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    def macros(self, parts: int, beside: int) -> tuple[str, ...]:
        """For what a kernel is compiled; `parts` as of `Work`, `beside` as of `Epilogue.beside`."""
        names = ("consumers", "width", "stages", "splits", "together")
        given = {name: getattr(self, name) for name in names} | {"parts": parts, "neighbours": int(beside > 0)}
        return tuple(f"-DUSE_{name.upper()}={value}" for name, value in given.items())

    def stores_later(self, work: Work, epilogue: Epilogue, beside: int, multiprocessors: int) -> bool:
        """Whether a tile's values wait in registers and are stored during the next tile's first steps.

        Of the largest tiles, whose stores no other block hides; of 16 bits or less, and without a residual, since more
        registers are not left; where there are as many steps as stores of a thread. `beside` as of `Epilogue.beside`.
        """
        large = self == Tiling(consumers=2, width=256) and math.prod(self.tiles(work.m, work.n)) > multiprocessors
        few = beside >= WIDE // 4 and work.steps >= self.width // 4 // beside
        return large and few and epilogue.residual is None

    def tiles(self, m: int, n: int) -> tuple[int, int]:
        """Tiles down and across."""
        return -(-m // self.height), -(-n // self.width)

    def blocks(self, m: int, n: int, multiprocessors: int) -> int:
        """The grid: every block stays and walks over tiles, except where K is divided."""
        tiles = math.prod(self.tiles(m, n))
        return min(tiles, multiprocessors * self.together) if self.splits == 1 else tiles * self.splits


@attrs.frozen(kw_only=True)
class Work:
    """What there is to divide: a product (m, n) over `steps` times `parts` times 32 bytes of K."""

    m: int
    n: int
    steps: int
    parts: int = STEP_BYTES // PART_BYTES
    finishing: float = INSTRUCTIONS
    """Cycles of a warp that finish one of its sums."""
    integers: bool = False
    """Bytes are multiplied."""


def tiling(work: Work, multiprocessors: int) -> Tiling:
    """The division that should take least time."""
    return min(_tilings(work), key=lambda t: _cycles(t, work, multiprocessors))


def parts_of(row_bytes: int) -> int:
    """How many 32 bytes a step has, of rows of K (of a window: of a tap) that are so long."""
    return next(n // PART_BYTES for n in tensor_maps.SWIZZLED if n >= min(row_bytes, STEP_BYTES))


def _tilings(work: Work) -> Iterator[Tiling]:
    """Two blocks that divide K of 256 columns have registers for it with one consumer alone, and for sums of floats."""
    divisible = work.steps > 1 and work.parts * PART_BYTES == STEP_BYTES and work.m * work.n <= MOST_DIVIDED
    for width in (64, 128, 256):
        for consumers in (1, 2):
            yield Tiling(consumers=consumers, width=width)
            if divisible and (width == 128 or (width == 256 and consumers == 1 and not work.integers)):
                yield Tiling(consumers=consumers, width=width, splits=2)
    yield Tiling(consumers=3, width=128)
    yield Tiling(consumers=1, width=128, together=2)
    yield Tiling(consumers=2, width=64, together=2)


def _cycles(t: Tiling, work: Work, multiprocessors: int) -> float:
    """A model of the loop, its figures measured on an H200.

    A multiprocessor multiplies 8,192 bytes' worth of pairs a cycle in two operations each; 47 bytes a cycle reach each
    when all ask, and up to 72 when few do; finishing a tile takes another 1,400 cycles, 200 more where blocks are
    together, of which one multiplies while another finishes; clusters meet for 4,400 cycles for each consumer.
    """
    down, across = t.tiles(work.m, work.n)
    blocks = down * across * t.splits
    waves = -(-blocks // (multiprocessors * t.together))
    arriving = min(72, 47 * multiprocessors / min(blocks, multiprocessors))
    depth = work.parts * PART_BYTES
    step = max(t.height * t.width * depth / 4096, (t.height + t.width) * depth / arriving)
    multiplying = -(-work.steps // t.splits) * step
    finishing = work.finishing * t.width / t.splits / 2 * t.consumers
    more = 1200 + 200 * t.together + 4400 * t.consumers * (t.splits > 1)
    return waves * (max(multiplying + finishing, t.together * max(multiplying, finishing)) + more)


@attrs.frozen(kw_only=True)
class AmpereTiling:
    """How the loop from Ampere on divides a product; see csrc/mainloop_sm80.cuh."""

    width: int = AMPERE_TILE
    """Columns of a tile: 64 or 128."""
    splits: int = 1
    """Blocks of a cluster that divide K; GPUs before Hopper have none."""

    @property
    def macros(self) -> tuple[str, str]:
        return f"-DUSE_WIDTH={self.width}", f"-DUSE_SPLITS={self.splits}"

    @property
    def cluster(self) -> int | None:
        return self.splits if self.splits > 1 else None

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Of blocks, those of a cluster side by side."""
        return -(-m // AMPERE_TILE) * self.splits, -(-n // self.width)


def ampere_tiling(
    kind: str, epilogue: Epilogue, shape: tuple[int, int], k_bytes: int, *, groups: int = 1
) -> AmpereTiling:
    """The division of `groups` products of a shape that should take least time; `kind` is the `element`.

    Products of float32, which run on Hopper too, are divided in every way; a range is found of whole columns alone.
    """
    gpu, steps = device.gpu(), -(-k_bytes // AMPERE_STEP_BYTES)
    if kind != "f32":
        return AmpereTiling(width=AMPERE_NARROW if shape[1] <= AMPERE_NARROW else AMPERE_TILE)
    splits = (1, 2, 4) if gpu.capability >= device.HOPPER and epilogue.ranges is None else (1,)
    widths = (AMPERE_TILE, AMPERE_NARROW) if shape[1] > AMPERE_NARROW else (AMPERE_NARROW,)
    tilings = [AmpereTiling(width=width, splits=s) for width in widths for s in splits if s <= steps]
    return min(tilings, key=lambda t: _ampere_steps(t, groups * math.prod(t.grid(*shape)), steps, gpu.multiprocessors))


def _ampere_steps(t: AmpereTiling, blocks: int, steps: int, multiprocessors: int) -> float:
    """A model of the loop in the time of a step of the larger tile, 1.06 us of an H200.

    Two of the smaller tiles share a multiprocessor: they take 2 % more, but one starts or stores while the other
    multiplies; one alone is little faster. The meeting of a cluster takes three steps.
    """
    narrow = t.width < AMPERE_TILE
    tiles = -(-blocks // multiprocessors) * t.width / AMPERE_TILE
    multiplying = max(tiles, 0.6) * (1.02 if narrow else 1.0) * steps / t.splits
    return multiplying + math.ceil(tiles) * ((2.0 if narrow else 2.4) + 3 * (t.splits > 1))


def gemm(
    a: cupy.ndarray,
    b: cupy.ndarray,
    epilogue: Epilogue = PLAIN,
    *,
    out: cupy.ndarray | None = None,
    precision: Precision = "tf32",
) -> cupy.ndarray:
    """epilogue(A B') as (m, n).

    Args:
        a: (m, k) of int8, uint8, float16, bfloat16 or float32.
        b: (n, k) of the same type; of int8 where A is uint8.
        epilogue: what is stored.
        out: where to write, of the epilogue's type, its rows contiguous.
        precision: of the products of float32.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    _check(a, b)
    if out is None:
        out = cupy.empty((a.shape[0], b.shape[0]), epilogue.output)
    if out.size == 0:
        return out
    a, b = readable(a), readable(b)
    capability = device.gpu().capability
    if capability == device.HOPPER and not (a.dtype.name == "float32" and precision == "float32"):
        on_hopper(a, b, epilogue, out)
    elif capability >= AMPERE:
        on_ampere(a, b, epilogue, out, precision)
    else:
        on_turing(a, b, epilogue, out)
    return out


def on_hopper(
    a: cupy.ndarray, b: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray, chosen: Tiling | None = None
) -> None:
    """`gemm` by wgmma, of matrices that the copy engine can read; `chosen` replaces what the model would take."""
    (m, k), n, processors = a.shape, b.shape[0], device.gpu().multiprocessors
    steps, parts = -(-k * a.itemsize // STEP_BYTES), parts_of(k * a.itemsize)
    work = Work(m=m, n=n, steps=steps, parts=parts, finishing=epilogue.instructions, integers=a.itemsize == 1)
    t = chosen or tiling(work, processors)
    beside = epilogue.beside(out)
    later = f"-DUSE_LATER={int(t.stores_later(work, epilogue, beside, processors))}"
    options = (f"-DUSE_ELEMENT={ELEMENTS[a.dtype.name]}", *epilogue.macros, *t.macros(parts, beside), later)
    down, across = t.tiles(m, n)
    step_bytes = parts * PART_BYTES
    launch(
        kernel("gemm_sm90", "gemm", options=options), t.blocks(m, n, processors), t.threads,
        tensor_maps.boxes(a, t.height, step_bytes),
        tensor_maps.columns(b[:, None], t.width, step_bytes, beside), epilogue.structure(out),
        np.int32(down), np.int32(across), np.int32(steps), shared=t.shared, cluster=t.splits, overlaps=True,
    )  # fmt: skip


def on_ampere(
    a: cupy.ndarray, b: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray, precision: Precision = "tf32",
    chosen: AmpereTiling | None = None,
) -> None:  # fmt: skip
    """`gemm` by mma.sync, of matrices whose rows begin at multiples of 16 bytes; `chosen` as of `on_hopper`."""
    kind = element(a, precision)
    t = chosen or ampere_tiling(kind, epilogue, out.shape, a.shape[1] * a.itemsize)
    options = (f"-DUSE_ELEMENT={kind}", *epilogue.macros, "-DUSE_ACCESS=16", *t.macros)
    launch(
        kernel("gemm_sm80", "gemm", options=options), t.grid(*out.shape), AMPERE_THREADS, *_matrices(a, b),
        epilogue.structure(out), shared=AMPERE_SHARED, cluster=t.cluster,
    )  # fmt: skip


def on_turing(a: cupy.ndarray, b: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray) -> None:
    """`gemm` of bytes by dp4a, of matrices whose rows begin at multiples of 16 bytes.

    Raises:
        ValueError: the matrices are not of bytes.
    """
    if a.itemsize != 1:
        raise ValueError(f"products of {a.dtype} need a GPU of compute capability 8.0 or later")
    options = (f"-DUSE_ELEMENT={element(a)}", *epilogue.macros)
    grid = -(-out.shape[0] // TURING_TILE), -(-out.shape[1] // TURING_TILE)
    launch(kernel("gemm_dp4a", "gemm", options=options), grid, 128, *_matrices(a, b), epilogue.structure(out))


def element(a: cupy.ndarray, precision: Precision = "tf32") -> str:
    """The kernels' name of a type of operands."""
    return "f32" if precision == "float32" and a.dtype.name == "float32" else ELEMENTS[a.dtype.name]


def readable(matrix: cupy.ndarray) -> cupy.ndarray:
    """The matrix, or where its rows do not begin and end at multiples of 16 bytes a copy whose rows do.

    What is filled in is zero in both operands: whatever lies behind a row is not read, and not multiplied either.
    """
    import cupy

    rows, k = matrix.shape
    each = tensor_maps.ALIGNMENT // matrix.itemsize
    if k % each == 0 and tensor_maps.describable(matrix):
        return matrix
    copy = cupy.zeros((rows, max(1, -(-k // each)) * each), matrix.dtype)
    copy[:, :k] = matrix
    return copy


def _check(a: cupy.ndarray, b: cupy.ndarray) -> None:
    second = "int8" if a.dtype.name == "uint8" else a.dtype.name
    if a.dtype.name not in ELEMENTS or b.dtype.name != second:
        raise ValueError(f"there is no product of {a.dtype} and {b.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"matrices {list(a.shape)} and {list(b.shape)} do not share their last axis")


def _matrices(a: cupy.ndarray, b: cupy.ndarray) -> tuple[Any, ...]:
    """The kernels' arguments: pointers, bytes from row to row, bytes of a row."""
    return a, b, np.int64(a.strides[0]), np.int64(b.strides[0]), np.int32(a.shape[1] * a.itemsize)
