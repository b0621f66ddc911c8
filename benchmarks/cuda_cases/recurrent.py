"""An LSTM layer against PyTorch's, which is cuDNN's: in float32, and in 8 bits with a state quantized at every step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import Case, Contest, relative_error

SHAPES = ((50, 1, 256, 256), (50, 32, 256, 256), (100, 8, 128, 128), (50, 32, 512, 512))
"""Steps, batch, inputs, units."""
EIGHT_BITS = ((50, 1, 320, 320), (50, 64, 320, 320), (100, 8, 128, 128))
CLOSE, CLOSE_LEVELS = 1e-4, 2e-3
"""Of the outputs' norm, that a difference may have; a value past a tie is a level off."""
GATES, EIGHT_BIT_LSTM = 4, "DynamicQuantizeLSTM"


def cases(quick: bool) -> Iterator[Case]:
    for time, batch, inputs, hidden in SHAPES[:2] if quick else SHAPES:
        yield _case("lstm", _floats, 4.0, (time, batch, inputs, hidden))
    for shape in EIGHT_BITS[:1] if quick else EIGHT_BITS:
        yield _case("s8 lstm", _eight_bits, 1.0, shape)


def _case(name: str, contest: Callable[..., Contest], weight: float, shape: tuple[int, int, int, int]) -> Case:
    """`weight` bytes each."""
    time, batch, inputs, hidden = shape
    return Case(
        family="recurrent", name=f"{name} {time} steps, batch {batch}, {inputs} -> {hidden}", target=1.0,
        operations=2.0 * GATES * time * batch * hidden * (inputs + hidden),
        moved=weight * GATES * hidden * (inputs + hidden) + 4.0 * time * batch * (inputs + hidden),
        build=lambda sets: contest(sets, *shape),
    )  # fmt: skip


def _eight_bits(sets: int, time: int, batch: int, inputs: int, hidden: int) -> Contest:
    import cupy
    import torch

    from pumice.ops import core_table
    from pumice.ops.record import Node
    from pumice_cuda.kernels.recurrent import KERNELS

    attributes, outputs = {"hidden_size": hidden}, ("y", "h", "c")
    node = Node(op_type=EIGHT_BIT_LSTM, domain="com.microsoft", attributes=attributes, outputs=outputs)
    rng = cupy.random.default_rng()
    w, r = (rng.integers(-127, 128, (1, n, GATES * hidden)).astype(np.int8) for n in (inputs, hidden))
    scale, zero = cupy.full(1, hidden**-0.5 / 127, np.float32), cupy.zeros(1, np.int8)
    bias = rng.standard_normal((1, 2 * GATES * hidden), dtype=np.float32)
    constants = (w, r, bias, *[None] * 4, scale, zero, scale, zero)
    (record,) = (k for k in KERNELS if k.op_type == EIGHT_BIT_LSTM)
    x = [rng.standard_normal((time, batch, inputs), dtype=np.float32) for _ in range(min(sets, 8))]
    ours = record.bind(node, [None, *constants]) if record.bind else None
    assert ours is not None

    def check() -> str | None:
        expected = core_table().resolve(node.domain, node.op_type, 1).forward(node, x[0], *constants)[0]
        error = relative_error(ours(node, x[0], *constants)[0], expected)
        return None if error < CLOSE_LEVELS else f"relative error {error:.2g}"

    layer, tensors = torch.nn.LSTM(inputs, hidden).cuda().requires_grad_(False), [torch.from_dlpack(v) for v in x]
    return Contest(
        check=check, ours=[lambda v=v: ours(node, v, *constants) for v in x],
        peers={"torch float32 (cuDNN)": [lambda v=v: layer(v)[0] for v in tensors]},
    )  # fmt: skip


def _floats(sets: int, time: int, batch: int, inputs: int, hidden: int) -> Contest:
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
