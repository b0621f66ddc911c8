"""INT8 matrix products with a scale a column, to bfloat16, against cuBLASLt's and PyTorch's.

Peers: cuBLASLt with 32 MiB of workspace, the fastest of the algorithms that its heuristics offer, for the sums alone
(`cublasLt s32`, which does less than ours) and with a kernel that scales them (`cublasLt + scale`); `torch._int_mm`
with PyTorch's scaling.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import Case, Contest, Work, poisoned, relative_error

SIZES = (
    (4096, 4096, 4096, 1.0), (1024, 1024, 1024, 0.9), (2048, 2048, 2048, 0.9), (8192, 8192, 8192, 0.9),
    (128, 4096, 4096, 0.9),
)  # fmt: skip
BFLOAT_ROUNDING = 4e-3


def cases(quick: bool) -> Iterator[Case]:
    for m, n, k, target in SIZES[:2] if quick else SIZES:
        yield Case(
            family="gemm", name=f"s8 {m}x{n}x{k} -> bf16", operations=2.0 * m * n * k, moved=m * k + n * k + 2 * m * n,
            target=target, build=lambda sets, m=m, n=n, k=k: _contest(sets, m, n, k),
        )  # fmt: skip


def _contest(sets: int, m: int, n: int, k: int) -> Contest:
    import cupy

    from pumice_cuda.epilogue import Epilogue
    from pumice_cuda.gemm import gemm

    rng = cupy.random.default_rng()
    a, b = ([_bytes(rng, rows, k) for _ in range(sets)] for rows in (m, n))
    scale = rng.uniform(0.5e-4, 2e-4, n, dtype=np.float32)
    epilogue = Epilogue(output="bfloat16", scale=scale)
    outs = [cupy.empty((m, n), "bfloat16") for _ in range(sets)]

    def check() -> str | None:
        out = gemm(a[0], b[0], epilogue, out=poisoned((m, n), "bfloat16"))
        product = a[0].astype(np.float64) @ b[0].astype(np.float64).T  # exact: sums stay far below 2**53
        error = relative_error(out.astype(np.float32), product * scale)
        return None if error < BFLOAT_ROUNDING else f"relative error {error:.2g}"

    ours = [lambda i=i: gemm(a[i], b[i], epilogue, out=outs[i]) for i in range(sets)]
    return Contest(check=check, ours=ours, peers=_peers(a, b, scale, outs))


def _bytes(rng: Any, *shape: int) -> Any:
    return rng.integers(-127, 128, shape, dtype=np.int8)


def _peers(a: Sequence[Any], b: Sequence[Any], scale: Any, outs: Sequence[Any]) -> dict[str, Sequence[Work]]:
    import cupy
    import torch
    from cuda_peers.cublaslt import Product

    product, sets = Product(a[0], b[0]), range(len(a))
    sums = [cupy.empty(out.shape, np.int32) for out in outs]
    scaled = cupy.ElementwiseKernel("int32 sum, float32 scale", "T y", "y = T(sum * scale)", "scaled")
    ta, tb = [torch.from_dlpack(x) for x in a], [torch.from_dlpack(y).T for y in b]
    tscale, torch_sums = torch.from_dlpack(scale), torch._int_mm  # noqa: SLF001  PyTorch has no public name for it
    return {
        "cublasLt s32": [lambda i=i: product(a[i], b[i], sums[i]) for i in sets],
        "cublasLt + scale": [lambda i=i: (product(a[i], b[i], sums[i]), scaled(sums[i], scale, outs[i])) for i in sets],
        "torch._int_mm + scale": [lambda i=i: (torch_sums(ta[i], tb[i]) * tscale).bfloat16() for i in sets],
    }
