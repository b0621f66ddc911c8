"""An LSTM layer against PyTorch's, which is cuDNN's."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import Case, Contest, relative_error

SHAPES = ((50, 1, 256, 256), (50, 32, 256, 256), (100, 8, 128, 128), (50, 32, 512, 512))
"""Steps, batch, inputs, units."""
CLOSE = 1e-4


def cases(quick: bool) -> Iterator[Case]:
    for time, batch, inputs, hidden in SHAPES[:2] if quick else SHAPES:
        yield Case(
            family="recurrent", name=f"lstm {time} steps, batch {batch}, {inputs} -> {hidden}", target=1.0,
            operations=8.0 * time * batch * hidden * (inputs + hidden),
            moved=4.0 * (4 * hidden * (inputs + hidden) + time * batch * (inputs + hidden)),
            build=lambda sets, s=(time, batch, inputs, hidden): _contest(sets, *s),
        )  # fmt: skip


def _contest(sets: int, time: int, batch: int, inputs: int, hidden: int) -> Contest:
    import cupy
    import torch

    from pumice_cuda import recurrent

    layer = torch.nn.LSTM(inputs, hidden).cuda().requires_grad_(False)
    w, r, b, c = (_reordered(v, hidden) for v in layer.parameters())
    bias, weights = cupy.concatenate([b, c]), recurrent.prepare("lstm", w, r)
    x = [
        cupy.random.default_rng().standard_normal((time, batch, inputs), dtype=np.float32) for _ in range(min(sets, 8))
    ]
    state = cupy.zeros((batch, hidden), np.float32)
    y = cupy.empty((time, batch, hidden), np.float32)

    def ours(v: Any) -> Any:
        h, cell = state.copy(), state.copy()
        recurrent.run(weights, v, y, h, cell, bias=bias)
        return y

    def check() -> str | None:
        y.fill(np.nan)
        with torch.backends.cudnn.flags(enabled=False):
            expected = cupy.asarray(layer.double()(torch.from_dlpack(x[0]).double())[0])
        layer.float()
        error = relative_error(ours(x[0]), expected)
        return None if error < CLOSE else f"relative error {error:.2g}"

    tensors = [torch.from_dlpack(v) for v in x]
    return Contest(
        check=check, ours=[lambda v=v: ours(v) for v in x],
        peers={"torch (cuDNN)": [lambda v=v: layer(v)[0] for v in tensors]},
    )  # fmt: skip


def _reordered(parameter: Any, hidden: int) -> Any:
    """PyTorch's gates i, f, c, o as ONNX's i, o, f, c."""
    import cupy

    i, f, c, o = cupy.split(cupy.asarray(parameter), 4)
    return cupy.ascontiguousarray(cupy.concatenate([i, o, f, c]))
