"""Products with weights of four bits on the GPU: each weight is a code, 0 to 15, into a table of 16 entries.

    weight(k, n) = (table[code(k, n)] - offset) scale

with the table, offset and scale of the column n, or of the column's group of `group` consecutive k: what the CPU's
`pumice_cpu.lowbit` takes. Weights stay codes in memory and become bfloat16 in registers, for the tensor cores. Entries
and activations that are no bfloat16 are sums of two, a high and a low part, each with a product: the error is that of
16 bits of mantissa. Tables of consecutive integers are decoded by arithmetic, and one table for all comes from shared
memory, two codes at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import ml_dtypes
import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import ACCESS, aligned, floats, parameter, truth, type_name
from pumice_cuda.transfers import finish_stream

if TYPE_CHECKING:
    import cupy

ENTRIES = 16
TILE, STEP, WORD, EIGHT = 16, 128, 32, 8
"""Outputs of a tile, k of a step, k of the words that four threads have, codes of a word; as in csrc/lowbit.cuh."""
BLOCK = 64
"""Outputs, at most, whose tables a block reads at once."""
CENTRE = 8
"""The code that decoding by arithmetic takes for zero."""
WHOLE = 100
"""Below this, differences of codes and whole numbers are exact in bfloat16, however they come about."""
WARPS, PIECE = 8, 4096
"""Of a block with few rows, and the k of A that it has at a time; as in csrc/lowbit_few.cu."""
CLUSTERS, STEPS, SUMS = (1, 2), 2, 512
"""Blocks that have all of K among them, steps of a warp, and bytes of its sums of a tile; as in
csrc/lowbit_few_sm90.cu."""
CLUSTERED = device.HOPPER, (10, 0)
"""Compute capabilities: what has wgmma, and what csrc/lowbit_few_sm90.cu is for."""
FEW = 32
"""Rows of A up to which weights are not rounded more than their entries are."""
SOME = 128
"""Rows of A up to which Hopper decodes weights for all of them; for more they are decoded to memory, once."""
SHARES, STAGES_OF, STAGE = 4, {32: 8, 64: 8, 128: 4}, 8 << 10
"""Of K; of shared memory, by rows of A; bytes of codes in one of those. As in csrc/lowbit_sm90.cu."""
ROWS, OUTPUTS, STAGES, STRIDE = 64, 64, 3, 160
"""Of a block where there are more; as in csrc/lowbit_many.cu."""
PAIRS = 32 << 10
"""Bytes of shared memory that the values of all pairs of codes take."""
ROOM, LEAST_ROOM = {(8, 0): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}, 99 << 10
"""Bytes of shared memory that a block may have, by compute capability."""
Arrays = Any
"""NumPy's or CuPy's."""


@attrs.frozen(eq=False, kw_only=True)
class Codebook:
    """Weights (k, n) of four bits on the device, as the kernels read them."""

    k: int
    n: int
    group: int
    decoder: str
    """Levels, Tables or Pairs."""
    parts: int
    """Of each entry of the table."""
    codes: cupy.ndarray
    tables: cupy.ndarray | None
    scale: cupy.ndarray
    """(groups, padded n)."""
    offset: cupy.ndarray | None
    strides: tuple[int, int]
    """Tables from one output, or group, to the next."""
    whole: bool = False
    """Whether offsets are small whole numbers, which codes less them are as well."""

    @property
    def nbytes(self) -> int:
        return sum(int(a.nbytes) for a in (self.codes, self.tables, self.scale, self.offset) if a is not None)

    @property
    def steps(self) -> int:
        return -(-self.k // STEP)

    @property
    def tiles(self) -> int:
        return -(-self.n // TILE)

    @property
    def span(self) -> int:
        """Words of a step that share scales."""
        return min(self.group, STEP) // WORD

    @property
    def group_steps(self) -> int:
        return max(1, self.group // STEP)


def pack(
    codes: Arrays, table: Arrays, scale: Arrays = 1.0, offset: Arrays | None = None, *, group: int | None = None
) -> Codebook:
    """Arrange 4-bit weights for the kernels, and wait until they are: kernels read them before they wait for what was
    queued before, on any stream.

    Args:
        codes: (k, n) integers, 0 to 15.
        table: (16,), (n, 16), or (n, groups, 16).
        scale: broadcast to (n, groups); groups = ceil(k / group).
        offset: the same; in units of the table, taken off every entry.
        group: consecutive k that share a scale: 32, 64 or a multiple of 128. None: all of them.

    Raises:
        ValueError: a code above 15, shapes that do not fit, a group size without a kernel.
        PumiceError: there is no GPU to use; the text says why.
    """
    device.gpu()  # says why, where there is none
    import cupy

    codes, entries = cupy.asarray(codes), _host(table)
    k, n = codes.shape
    group = k if group is None else min(group, k)
    groups = -(-k // max(group, 1))
    _check(codes, entries, group, groups)
    group = group if groups > 1 else -(-k // STEP) * STEP
    start = arithmetic(entries)
    decoder = "Levels" if start is not None else "Pairs" if entries.ndim == 1 else "Tables"
    exact = start is not None or (entries.astype(ml_dtypes.bfloat16).astype(np.float32) == entries).all()
    parts = 1 if exact else 2
    offsets = _host(0 if offset is None else offset) - np.float32(0 if start is None else start + CENTRE)
    scales, offsets = (np.broadcast_to(v, (n, groups)) for v in (_host(scale), offsets))
    packed = Codebook(
        k=k,
        n=n,
        group=group,
        decoder=decoder,
        parts=parts,
        codes=arranged(codes, in_pairs=start is not None),
        tables=None if start is not None else _table(entries, parts, k, group),
        scale=_by_group(scales, k, group),
        offset=_by_group(offsets, k, group) if offsets.any() else None,
        whole=bool((offsets == offsets.round()).all() and np.abs(offsets).max(initial=0) < WHOLE),
        strides={1: (0, 0), 2: (1, 0), 3: (_groups(k, group), 1)}[entries.ndim],
    )
    finish_stream()
    return packed


def pack_affine(
    codes: Arrays, scale: Arrays, zero_point: Arrays | None = None, *, group: int | None = None
) -> Codebook:
    """Affine INT4: weight = (code - zero_point) scale, codes 0 to 15; without zero points, 8 stands for zero.

    Args:
        codes: (k, n).
        scale: broadcast to (n, groups).
        zero_point: the same.
        group: as in `pack`.

    Raises:
        ValueError: as `pack`.
    """
    return pack(codes, np.arange(ENTRIES), scale, CENTRE if zero_point is None else zero_point, group=group)


def matmul(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None = None) -> cupy.ndarray:
    """A W + bias as (..., n), for A (..., k) of float32, float16 or bfloat16, whose type the result has.

    Raises:
        ValueError: shapes or types do not fit.
    """
    import cupy

    a = floats(a, "A")
    if a.shape[-1] != weights.k:
        raise ValueError(f"A is {list(a.shape)}; 4-bit weights {[weights.k, weights.n]} take (..., {weights.k})")
    bias = parameter(bias, a.dtype)
    if bias is not None and bias.size != weights.n:
        raise ValueError(f"a bias of {bias.size} elements does not fit {weights.n} outputs")
    rows = math.prod(a.shape[:-1])
    y = cupy.empty((*a.shape[:-1], weights.n), a.dtype)
    if y.size:
        _run(rows, a, weights)(a.reshape(rows, weights.k), weights, bias, y.reshape(rows, weights.n))
    return y


def decoded(weights: Codebook, dtype: Any = np.float32) -> cupy.ndarray:
    """The matrix that the codes stand for, transposed: (n, k) of float32, float16 or bfloat16.

    Raises:
        ValueError: k is no multiple of 8.
    """
    import cupy

    if weights.k % EIGHT:
        raise ValueError(f"weights of {weights.k} rows are not decoded; the kernel takes multiples of {EIGHT}")
    w = cupy.empty((weights.n, weights.k), dtype)
    code = kernel("lowbit_many", f"decode<{type_name(w)}, {_in_registers(weights)}, {weights.span}>")
    sizes = map(np.int32, (weights.n, weights.tiles * TILE, weights.k))
    grid = blocks(weights.codes.size // 4, 256)
    launch(code, grid, 256, *_operands(weights), w, *sizes, *_extents(weights))
    return w


# --- launches ---------------------------------------------------------------------------------------------------------


def _run(rows: int, a: cupy.ndarray, weights: Codebook) -> Callable[..., None]:
    """What multiplies so many rows of A."""
    if rows <= EIGHT:
        return _in_clusters if _cluster(a, weights) else _few_rows
    if rows <= SOME and _by_warpgroups(rows, a, weights):
        return _in_shares
    if rows <= FEW:
        return _some_rows
    decodes = a.itemsize == 2 and _copied(a) and device.gpu().capability >= device.HOPPER
    return _decoded_once if decodes else _many_rows


def _cluster(a: cupy.ndarray, weights: Codebook) -> int | None:
    """Blocks that have all of K, where csrc/lowbit_few_sm90.cu has a kernel and all multiprocessors would have work."""
    fits = a.dtype.name == "bfloat16" and _copied(a) and device.gpu().capability in CLUSTERED and weights.parts == 1
    if not fits or weights.span < STEP // WORD or (weights.decoder == "Tables" and not _plain(weights)):
        return None
    cluster = next((c for c in CLUSTERS if weights.steps <= c * WARPS * STEPS), None)
    return cluster if cluster and _fills(weights, 2, cluster) else None


def _fills(weights: Codebook, tiles: int, each: int) -> bool:
    """Whether so many blocks for each so many tiles are enough for all multiprocessors."""
    return blocks(weights.tiles, tiles) * each > device.gpu().multiprocessors * 0.9


def _in_clusters(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    """With a block for each multiprocessor at least."""
    cluster, grouped = _cluster(a, weights) or max(CLUSTERS), not _plain(weights)
    tiles = 2 * cluster if _fills(weights, 2 * cluster, cluster) else 2  # of which a block writes two at most
    decoder = {"Levels": "Levels", "Pairs": "Pairs<1>", "Tables": f"Lanes<{tiles}>"}[weights.decoder]
    in_codes = weights.decoder == "Levels" and weights.whole
    offset = "kNone" if weights.offset is None else "kInCodes" if in_codes else "kInSums"
    values = decoder, truth(grouped), offset, tiles, STEPS, cluster
    tables = {"Levels": 0, "Pairs": PAIRS, "Tables": tiles * 4096}[weights.decoder]
    sums = WARPS * tiles // cluster * 2 * SUMS
    factors = (WARPS * STEPS if grouped else 1) * 2 * tiles * TILE * 4
    launch(
        kernel("lowbit_few_sm90", f"few_rows<{', '.join(map(str, values))}>"),
        max(blocks(weights.tiles, tiles), device.gpu().multiprocessors // cluster) * cluster, WARPS * 32, a,
        *_operands(weights), bias, y, *map(np.int32, (len(a), weights.n, weights.tiles * TILE, weights.k)),
        *_extents(weights), shared=tables + sums + factors + 8, cluster=(cluster, 1, 1), overlaps=True,
    )  # fmt: skip


def _by_warpgroups(rows: int, a: cupy.ndarray, weights: Codebook) -> bool:
    """Whether csrc/lowbit_sm90.cu has a kernel."""
    fits = a.dtype.name == "bfloat16" and _copied(a) and device.gpu().capability == device.HOPPER and weights.parts == 1
    if not fits or (weights.decoder == "Tables" and weights.span < STEP // WORD):
        return False
    return rows > FEW or (_plain(weights) and _fills(weights, 2 * WARPS, 2 * SHARES))


def _plain(weights: Codebook) -> bool:
    """Whether all that there is besides the table is a scale of each output, which is applied to the sums."""
    return not _grouped(weights) and weights.offset is None


def _grouped(weights: Codebook) -> bool:
    return weights.group_steps < weights.steps or weights.span < STEP // WORD


def _copied(a: cupy.ndarray) -> bool:
    """Whether rows are as the copy engine takes them."""
    return a.shape[-1] % EIGHT == 0 and aligned(a)


def _in_shares(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    import cupy

    from pumice_cuda import tensor_maps

    rows, padded, plain = len(a), weights.tiles * TILE, _plain(weights)
    at_once = next(r for r in STAGES_OF if rows <= r)
    parts = cupy.empty((SHARES, rows, padded), np.float32)
    values = _decoder(weights, weights.decoder), at_once, 0 if plain else weights.span
    launch(
        kernel("lowbit_sm90", f"partial_products<{', '.join(map(str, values))}>"),
        (2 * blocks(weights.tiles, 2 * WARPS), SHARES), (WARPS + 1) * 32, tensor_maps.boxes(a, at_once // 2, STEP),
        *_operands(weights), parts, *map(np.int32, (rows, padded, blocks(weights.steps, SHARES))), *_extents(weights),
        shared=_pairs(weights) + STAGES_OF[at_once] * (at_once * 2 * STEP + STAGE), cluster=(2, 1, 1), overlaps=True,
    )  # fmt: skip
    sizes, scale = map(np.int32, (rows, weights.n, padded)), weights.scale if plain else None
    code = kernel("lowbit_sm90", f"combine<{SHARES}>")
    launch(code, blocks(rows * padded, 4 * 256), 256, parts, scale, bias, y, *sizes, overlaps=True)


def _decoded_once(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    """With weights of the type of A, which half precision allows."""
    from pumice_cuda.epilogue import Epilogue
    from pumice_cuda.gemm import gemm

    wide = None if bias is None else bias.astype(np.float32)
    gemm(a, decoded(weights, a.dtype), Epilogue(output=a.dtype.name, bias=wide), out=y)


def _few_rows(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    """A single row, and types of four bytes, come through shared memory; then blocks may have two tiles."""
    a = _readable(a)
    (rows, depth), pairs = a.shape, _pairs(weights)
    groups = _grouped(weights)
    staged = rows == 1 or a.itemsize > 2
    shared = pairs + rows * (PIECE * a.itemsize + 64) * staged
    if shared > _room() and rows > 1:
        _in_parts(-(-rows // 2), a, weights, bias, y)
        return
    tiles = 2 if staged and pairs and not groups and weights.tiles > device.gpu().multiprocessors else 1
    form = (tiles, truth(weights.offset is not None), truth(staged))
    decoder = _decoder(weights, weights.decoder)
    values = (type_name(a), decoder, _split(a), weights.span if groups else 0, *form)
    launch(
        kernel("lowbit_few", f"few_rows<{', '.join(map(str, values))}>"), blocks(weights.tiles, tiles), WARPS * 32, a,
        *_operands(weights), bias, y, *map(np.int32, (rows, weights.n, weights.tiles * TILE, depth)),
        *_extents(weights), shared=max(shared, WARPS * EIGHT * TILE * 4), overlaps=True,
    )  # fmt: skip


def _some_rows(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    a = _readable(a)
    (rows, depth), pairs = a.shape, _pairs(weights)
    columns = next(c for c in (2, 4) if rows <= c * EIGHT)
    light = weights.parts * _split(a) == 1 and weights.tiles > device.gpu().multiprocessors
    tiles, loads = 2 if light else 1, columns * a.itemsize // 2
    slots = 1 if loads == EIGHT else 2
    shared = max(pairs + slots * loads * WARPS * 32 * 4 * ACCESS, WARPS * columns * EIGHT * tiles * TILE * 4)
    if shared > _room():
        _in_parts(EIGHT, a, weights, bias, y)
        return
    decoder = _decoder(weights, weights.decoder)
    values = (type_name(a), decoder, _split(a), weights.span, columns, tiles, truth(weights.offset is not None))
    launch(
        kernel("lowbit_some", f"some_rows<{', '.join(map(str, values))}>"), blocks(weights.tiles, tiles), WARPS * 32, a,
        *_operands(weights), bias, y, *map(np.int32, (rows, weights.n, weights.tiles * TILE, depth)),
        *_extents(weights), shared=shared, overlaps=True,
    )  # fmt: skip


def _in_parts(rows: int, a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    """So many rows at a time."""
    for start in range(0, len(a), rows):
        _few_rows(a[start : start + rows], weights, bias, y[start : start + rows])


def _pairs(weights: Codebook) -> int:
    """Bytes of shared memory that the decoder takes."""
    return PAIRS * weights.parts * (weights.decoder == "Pairs")


def _room() -> int:
    return ROOM.get(device.gpu().capability, LEAST_ROOM)


def _readable(a: cupy.ndarray) -> cupy.ndarray:
    """With rows that are read 16 bytes at a time."""
    import cupy

    missing = -a.shape[1] % EIGHT
    return a if not missing and aligned(a) else cupy.pad(a, ((0, 0), (0, missing)))


def _many_rows(a: cupy.ndarray, weights: Codebook, bias: cupy.ndarray | None, y: cupy.ndarray) -> None:
    import cupy

    (rows, depth), split = a.shape, _split(a)
    if split == 1 and depth % STEP == 0 and aligned(a):
        parts = a
    else:
        padded = weights.steps * STEP
        parts = cupy.empty((split, rows, padded), np.uint16)
        code = kernel("lowbit_many", f"split_rows<{type_name(a)}, {split}>")
        sizes = np.int64(rows), np.int32(depth), np.int32(padded)
        launch(code, blocks(rows * padded, 256), 256, a, parts, *sizes)
    values = (type_name(a), _in_registers(weights), split, weights.span, truth(weights.offset is not None))
    grid = blocks(weights.n, OUTPUTS), blocks(rows, ROWS)
    launch(
        kernel("lowbit_many", f"many_rows<{', '.join(map(str, values))}>"), grid, 256, parts, *_operands(weights), bias,
        y, *map(np.int32, (rows, weights.n, weights.tiles * TILE)), *_extents(weights),
        shared=max(STAGES * split * ROWS * STRIDE * 2, 4 * ROWS * (OUTPUTS + 1) * 4),
    )  # fmt: skip


def _decoder(weights: Codebook, name: str) -> str:
    return name if name == "Levels" else f"{name}<{weights.parts}>"


def _in_registers(weights: Codebook) -> str:
    """The decoder that needs no shared memory."""
    return _decoder(weights, "Levels" if weights.decoder == "Levels" else "Tables")


def _split(a: cupy.ndarray) -> int:
    return 1 if a.dtype.name == "bfloat16" else 2


def _operands(weights: Codebook) -> tuple[Any, ...]:
    return weights.codes, weights.tables, weights.scale, weights.offset


def _extents(weights: Codebook) -> tuple[Any, ...]:
    return tuple(map(np.int32, (weights.steps, weights.group_steps, *weights.strides)))


# --- packing ----------------------------------------------------------------------------------------------------------


def arranged(codes: Arrays, *, in_pairs: bool) -> Arrays:
    """Codes (k, n) as words [tile][step][half][output][t][j], of the same array library.

    The eight codes of a word are in order, or (in pairs) those of even k before those of odd k.
    """
    import cupy

    k, n = codes.shape
    padded = cupy.get_array_module(codes).pad(codes.T.astype(np.uint32), ((0, -n % TILE), (0, -k % STEP)))
    blocked = padded.reshape(-1, 2, EIGHT, padded.shape[1] // STEP, 4, 4, EIGHT).transpose(0, 3, 1, 2, 5, 4, 6)
    words = blocked[..., 0]
    for i in range(1, EIGHT):
        place = i // 2 + i % 2 * 4 if in_pairs else i
        words = words | blocked[..., i] << np.uint32(4 * place)
    return words.copy()


def tables_of_bytes(entries: Arrays, parts: int) -> Arrays:
    """float32 (..., 16) as (..., parts, 2, 16): the low bytes and the high bytes of each bfloat16 part."""
    found, rest = [], entries
    for _ in range(parts):
        part = rest.astype(ml_dtypes.bfloat16)
        rest = rest - part.astype(np.float32)
        found.append(np.ascontiguousarray(part).view(np.uint8).reshape(*entries.shape, 2).swapaxes(-1, -2))
    return np.ascontiguousarray(np.stack(found, axis=-3))


def arithmetic(entries: Arrays) -> float | None:
    """The first entry, if the table is one for all and each entry is one more than the last; else None."""
    return float(entries[0]) if entries.ndim == 1 and (np.diff(entries) == 1).all() else None


def _table(entries: Arrays, parts: int, k: int, group: int) -> cupy.ndarray:
    import cupy

    if entries.ndim == 1:
        return cupy.asarray(tables_of_bytes(entries, parts))
    missing = [(0, -len(entries) % BLOCK), (0, 0)]
    if entries.ndim == 3:
        missing.insert(1, (0, _groups(k, group) - entries.shape[1]))
    return cupy.asarray(tables_of_bytes(np.pad(entries, missing), parts))


def _by_group(values: Arrays, k: int, group: int) -> cupy.ndarray:
    """(n, groups) as the kernels index it: (groups of the padded k, padded n)."""
    import cupy

    n, groups = values.shape
    padded = np.pad(values.T, ((0, _groups(k, group) - groups), (0, -n % TILE)))
    return cupy.asarray(np.ascontiguousarray(padded))


def _groups(k: int, group: int) -> int:
    return -(-(-(-k // STEP) * STEP) // group)


def _host(values: Arrays) -> Any:
    import cupy

    return np.asarray(cupy.asnumpy(values), np.float32)


def _check(codes: Arrays, entries: Arrays, group: int, groups: int) -> None:
    n = codes.shape[1]
    if codes.dtype.kind not in "iu" or (codes.size and (codes.min() < 0 or codes.max() >= ENTRIES)):
        raise ValueError("codes of 4-bit weights must be integers from 0 to 15")
    if groups > 1 and group not in {32, 64} and group % STEP:
        raise ValueError(f"groups of {group} have no kernel; use 32, 64 or a multiple of {STEP}")
    if entries.shape not in {(ENTRIES,), (n, ENTRIES), (n, groups, ENTRIES)}:
        raise ValueError(f"a table of shape {list(entries.shape)} fits no (16,), ({n}, 16) or ({n}, {groups}, 16)")
