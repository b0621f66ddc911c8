"""Softmax, normalisation, GELU and reductions against PyTorch's own and compiled kernels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import Case, Contest, relative_error

CLOSE = {"float32": 1e-5, "bfloat16": 1e-2}
SIZES = {
    "softmax": (49_152, 1024), "layer norm": (32_768, 1024), "skip layer norm": (32_768, 1024),
    "rms norm": (16_384, 4096), "gelu": (16_384, 4096), "sum of rows": (16_384, 4096), "sum of columns": (16_384, 4096),
}  # fmt: skip
READS = {"skip layer norm": 3, "sum of rows": 1, "sum of columns": 1}
"""Arrays of the full size that are read or written; two where nothing is said."""


def cases(quick: bool) -> Iterator[Case]:
    for name, (rows, columns) in list(SIZES.items())[: 2 if quick else None]:
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            moved = size * READS.get(name, 2) * rows * columns
            yield Case(
                family="rows", name=f"{name} {rows}x{columns} {dtype}", moved=moved, target=1.0,
                build=lambda sets, n=name, s=(rows, columns), d=dtype: _contest(sets, n, s, d),
            )  # fmt: skip


def _contest(sets: int, name: str, shape: tuple[int, int], dtype: str) -> Contest:
    import cupy
    import torch

    kind = cupy.zeros(0, dtype).dtype
    draw = cupy.random.default_rng().standard_normal
    x, other = ([draw(shape, dtype=np.float32).astype(kind) for _ in range(sets)] for _ in range(2))
    scale, bias = (draw(shape[1:], dtype=np.float32).astype(kind) for _ in range(2))
    ours = _ours(name, scale, bias)
    peer = _peer(name, _tensor(scale), _tensor(bias))
    tensors = [(_tensor(a), _tensor(b)) for a, b in zip(x, other, strict=True)]

    def check() -> str | None:
        wide = _peer(name, _tensor(scale).double(), _tensor(bias).double())(*(t[:64].double() for t in tensors[0]))
        found = ours(x[0][:64], other[0][:64])
        error = relative_error(found.astype(np.float64), cupy.asarray(wide))
        return None if error < CLOSE[dtype] else f"relative error {error:.2g}"

    compiled = torch.compile(peer)
    return Contest(
        check=check, ours=[lambda i=i: ours(x[i], other[i]) for i in range(sets)],
        peers={
            "torch": [lambda pair=pair: peer(*pair) for pair in tensors],
            "torch.compile": [lambda pair=pair: compiled(*pair) for pair in tensors],
        },
    )  # fmt: skip


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.name != "bfloat16":
        return torch.from_dlpack(array)
    return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)


def _ours(name: str, scale: Any, bias: Any) -> Callable[[Any, Any], Any]:
    from pumice_cuda import rows

    return {
        "softmax": lambda x, y: rows.softmax(x),
        "layer norm": lambda x, y: rows.layer_norm(x, scale, bias)[0],
        "skip layer norm": lambda x, y: rows.layer_norm(x, scale, bias, skip=y)[0],
        "rms norm": lambda x, y: rows.layer_norm(x, scale, rms=True)[0],
        "gelu": lambda x, y: rows.map_elements("gelu", x),
        "sum of rows": lambda x, y: rows.reduce("sum", x, [1]),
        "sum of columns": lambda x, y: rows.reduce("sum", x, [0]),
    }[name]


def _peer(name: str, scale: Any, bias: Any) -> Callable[[Any, Any], Any]:
    from torch.nn import functional as f

    shape: Sequence[int] = scale.shape
    return {
        "softmax": lambda x, y: f.softmax(x, -1),
        "layer norm": lambda x, y: f.layer_norm(x, shape, scale, bias),
        "skip layer norm": lambda x, y: f.layer_norm(x + y, shape, scale, bias),
        "rms norm": lambda x, y: f.rms_norm(x, shape, scale, 1e-5),
        "gelu": lambda x, y: f.gelu(x),
        "sum of rows": lambda x, y: x.sum(1, keepdim=True),
        "sum of columns": lambda x, y: x.sum(0, keepdim=True),
    }[name]
