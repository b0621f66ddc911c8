"""ReLU and quantization of many floats, and what training and dynamic quantization need, against PyTorch.

The peers of ReLU and quantization are PyTorch's fused kernel (`torch.compile`) and a copy on the device, which moves
the same number of bytes: no kernel can be much faster than that.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import Case, Contest, poisoned

SCALE, ZERO = 0.02, 3
SHARE_OF_COPY = 0.85


def cases(quick: bool) -> Iterator[Case]:
    count = 1 << (26 if quick else 28)
    moved = 5.0 * count
    for name, peer, target in (("torch.compile", _compiled, 1.2), ("device copy", _copied, SHARE_OF_COPY)):
        yield Case(
            family="quantize", name=f"relu + quantize {count:,} f32, {name}", moved=moved, target=target,
            build=lambda sets, peer=peer: _relu_quantize(sets, count, peer),
        )  # fmt: skip
    rows, columns = (4096, 1024) if quick else (16_384, 4096)
    yield Case(
        family="quantize", name=f"rows to s8 {rows}x{columns} f32", moved=5.0 * rows * columns, target=1.0,
        build=lambda sets: _rows(sets, rows, columns),
    )  # fmt: skip
    yield Case(
        family="quantize", name=f"fake quantize, gradients {rows}x{columns} f32", moved=12.0 * rows * columns,
        target=1.0, build=lambda sets: _fake(sets, rows, columns),
    )  # fmt: skip


def _relu_quantize(sets: int, count: int, peer: Any) -> Contest:
    import cupy

    from pumice_cuda.quantize import quantize

    x = [_normal(count) for _ in range(sets)]
    q = [cupy.empty(count, np.uint8) for _ in range(sets)]
    scale, zero = cupy.asarray([SCALE], np.float32), cupy.asarray([ZERO], np.uint8)

    def check() -> str | None:
        found = quantize(x[0], scale, zero, low=ZERO, out=poisoned((count,), np.uint8))
        wrong = 0
        for start in range(0, count, 1 << 24):
            part = cupy.asnumpy(x[0][start : start + (1 << 24)])
            expected = np.minimum(np.rint(np.maximum(part, 0) / np.float32(SCALE)) + ZERO, 255).astype(np.uint8)
            wrong += int((cupy.asnumpy(found[start : start + (1 << 24)]) != expected).sum())
        return f"{wrong} of {count} integers differ" if wrong else None

    ours = [lambda i=i: quantize(x[i], scale, zero, low=ZERO, out=q[i]) for i in range(sets)]
    return Contest(check=check, ours=ours, peers=peer(x, q))


def _normal(*shape: int) -> Any:
    import cupy

    return cupy.random.default_rng().standard_normal(shape, dtype=np.float32)


def _compiled(x: list[Any], q: list[Any]) -> dict[str, Any]:
    import torch

    @torch.compile
    def fused(v: torch.Tensor) -> torch.Tensor:
        return torch.clamp(torch.round(torch.relu(v) / SCALE) + ZERO, 0, 255).to(torch.uint8)

    inputs = [torch.from_dlpack(v) for v in x]
    return {"torch.compile": [lambda v=v: fused(v) for v in inputs]}


def _copied(x: list[Any], q: list[Any]) -> dict[str, Any]:
    """Copies that read and write as many bytes together as ours: the driver's, and a kernel's."""
    import torch

    inputs = [torch.from_dlpack(v) for v in x]
    size = inputs[0].numel() * 5 // 8
    target = torch.empty(size, dtype=torch.float32, device="cuda")
    return {
        "device copy": [lambda v=v: target.copy_(v[:size]) for v in inputs],
        "copying kernel": [lambda v=v: torch.neg(v[:size], out=target) for v in inputs],
    }


def _rows(sets: int, rows: int, columns: int) -> Contest:
    import cupy
    import torch

    from pumice_cuda.quantize import quantize_rows

    x = [_normal(rows, columns) for _ in range(sets)]

    @torch.compile
    def fused(v: torch.Tensor) -> Any:
        most = v.abs().amax(-1, keepdim=True)
        return torch.round(v * (127 / most)).to(torch.int8), most / 127

    def check() -> str | None:
        q, scale = quantize_rows(x[0])
        most = cupy.abs(x[0]).max(-1, keepdims=True)
        right = (q == cupy.rint(x[0] * (np.float32(127) / most)).astype(np.int8)).all()
        return None if right and (scale == most[:, 0] / np.float32(127)).all() else "integers or scales differ"

    tensors = [torch.from_dlpack(v) for v in x]
    return Contest(
        check=check, ours=[lambda v=v: quantize_rows(v) for v in x],
        peers={"torch.compile": [lambda v=v: fused(v) for v in tensors]},
    )  # fmt: skip


def _fake(sets: int, rows: int, columns: int) -> Contest:
    import cupy
    import torch

    from pumice_cuda.quantize import fake_quantize_gradient

    x, dy = ([_normal(rows, columns) for _ in range(sets)] for _ in range(2))
    scale = cupy.asarray([SCALE], np.float32)

    @torch.compile
    def fused(v: torch.Tensor, given: torch.Tensor, s: torch.Tensor) -> Any:
        quotient = v / s
        level = torch.round(quotient)
        inside = (level >= -128) & (level <= 127)
        kept = torch.clamp(level, -128, 127)
        return given * inside, (given * torch.where(inside, kept - quotient, kept)).sum()

    def check() -> str | None:
        dx, ds = fake_quantize_gradient(x[0], dy[0], scale)
        level = cupy.rint(x[0] / scale)
        inside = (level >= -128) & (level <= 127)
        kept = cupy.clip(level, -128, 127)
        terms = (dy[0] * cupy.where(inside, kept - x[0] / scale, kept)).astype(np.float64)
        close = abs(float(ds[0]) - float(terms.sum())) < 1e-6 * float(cupy.abs(terms).sum())
        return None if close and (dx == dy[0] * inside).all() else "gradients differ"

    tensors = [(torch.from_dlpack(v), torch.from_dlpack(given)) for v, given in zip(x, dy, strict=True)]
    tensor_scale = torch.from_dlpack(scale)
    return Contest(
        check=check, ours=[lambda i=i: fake_quantize_gradient(x[i], dy[i], scale) for i in range(sets)],
        peers={"torch.compile": [lambda pair=pair: fused(*pair, tensor_scale) for pair in tensors]},
    )  # fmt: skip
