"""Products with 4-bit weights, codebook and affine, against cuBLAS with the same weights as bfloat16."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import Case, Contest, relative_error

SIZE = 4096
GROUP = 128
BFLOAT_ROUNDING = 4e-3
KINDS = {
    "codebook": {"shape": (16,), "group": None},
    "codebook a column": {"shape": (SIZE, 16), "group": None},
    "affine g128": {"shape": None, "group": GROUP},
}


def cases(quick: bool) -> Iterator[Case]:
    for kind in list(KINDS)[:1] if quick else KINDS:
        for rows in (1, 8) if quick else (1, 8, 32, 128):
            yield Case(
                family="lowbit", name=f"int4 {kind} {rows}x{SIZE}x{SIZE} bf16", moved=SIZE * SIZE / 2 + 4 * rows * SIZE,
                target=3.0 if rows <= 8 else 1.0, build=lambda sets, kind=kind, rows=rows: _contest(sets, kind, rows),
            )  # fmt: skip


def _contest(sets: int, kind: str, rows: int) -> Contest:
    import cupy
    import torch

    from pumice_cuda import lowbit

    rng = np.random.default_rng()
    dtype = cupy.zeros(0, "bfloat16").dtype
    packed, matrices = zip(*(_weights(rng, kind) for _ in range(min(sets, 8))), strict=True)
    a = [cupy.asarray(rng.standard_normal((rows, SIZE), np.float32)).astype(dtype) for _ in range(sets)]

    def check() -> str | None:
        found = lowbit.matmul(a[0], packed[0]).astype(np.float32)
        error = relative_error(found, a[0].astype(np.float64) @ matrices[0].astype(np.float64))
        return None if error < BFLOAT_ROUNDING else f"relative error {error:.2g}"

    copies = [packed[i % len(packed)] if i < len(packed) else _copy(packed[i % len(packed)]) for i in range(sets)]
    wide = [torch.from_dlpack(m.astype(dtype).view(np.uint16)).view(torch.bfloat16) for m in matrices]
    left = [torch.from_dlpack(v.view(np.uint16)).view(torch.bfloat16) for v in a]
    return Contest(
        check=check, ours=[lambda i=i: lowbit.matmul(a[i], copies[i]) for i in range(sets)],
        peers={"cuBLAS bf16": [lambda i=i: left[i] @ wide[i % len(wide)] for i in range(sets)]},
    )  # fmt: skip


def _copy(packed: Any) -> Any:
    import attrs

    return attrs.evolve(packed, codes=packed.codes.copy())


def _weights(rng: Any, kind: str) -> tuple[Any, Any]:
    """Packed ones, and the matrix (k, n) that they stand for, whose columns are contiguous, as cuBLAS likes them."""
    import cupy

    from pumice_cuda import lowbit

    codes = cupy.asarray(rng.integers(0, 16, (SIZE, SIZE), np.uint8))
    shape, group = KINDS[kind]["shape"], KINDS[kind]["group"]
    groups = SIZE // (group or SIZE)
    scale = rng.uniform(0.5, 1.5, (SIZE, groups)).astype(np.float32) * np.float32(0.02)
    spread = cupy.repeat(cupy.asarray(scale), SIZE // groups, axis=1)
    if shape is None:
        zero = rng.integers(0, 16, (SIZE, groups)).astype(np.uint8)
        levels = codes.T.astype(np.float32) - cupy.repeat(cupy.asarray(zero), SIZE // groups, axis=1)
        return lowbit.pack_affine(codes, scale, zero, group=group), (levels * spread).T
    table = rng.standard_normal(shape).astype(np.float32)
    table = (table.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # bfloat16, as it is stored
    found = cupy.asarray(table)
    values = found[codes.T] if table.ndim == 1 else cupy.take_along_axis(found, codes.T.astype(np.int64), axis=1)
    return lowbit.pack(codes, table, scale, group=group), (values * spread).T
