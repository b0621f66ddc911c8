"""The distinct convolutions of ResNet50 (and depthwise ones of MobileNetV2) over 32 images, against cuDNN.

Channels are last on both sides. Our INT8 stores INT8 with a scale a channel and ReLU, and so does cuDNN's, which
PyTorch has no way to (`cuda_peers/cudnn.py`); beside it is cuDNN in bfloat16, which reads and writes twice the bytes
and multiplies at half the rate. The other types have cuDNN in the same type; `f32` is float32's accuracy on both sides,
`tf32` what both make of it then.
"""

import functools
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np

from . import Case, Contest, Work, poisoned

IMAGES = 32
TARGETS = {"s8": 1.0, "bf16": 0.8, "tf32": 0.8, "f32": 0.8}
TYPES = {"s8": "int8", "bf16": "bfloat16", "tf32": "float32", "f32": "float32"}
MOST_ERROR = {"s8": 1e-3, "bf16": 4e-3, "tf32": 2e-3, "f32": 1e-6}
"""Of the norm; of bytes the share that a rounding beside a tie may move by one."""
CHECKED = [0, -1]
"""Images whose results are compared."""


@attrs.frozen
class Layer:
    channels: int
    outputs: int
    size: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        kind = "depthwise " if self.groups > 1 else ""
        slash = f"/{self.stride}" if self.stride > 1 else ""
        return f"{kind}{self.kernel}x{self.kernel}{slash} {self.channels}->{self.outputs} @{self.size}"

    @property
    def out_size(self) -> int:
        return -(-self.size // self.stride)

    @property
    def operations(self) -> float:
        taps = self.kernel**2 * self.channels // self.groups
        return 2.0 * IMAGES * self.out_size**2 * self.outputs * taps

    def moved(self, itemsize: int) -> int:
        weights = self.outputs * self.kernel**2 * self.channels // self.groups
        pixels = self.size**2 * self.channels + self.out_size**2 * self.outputs
        return itemsize * (IMAGES * pixels + weights)


LAYERS = (
    Layer(3, 64, 224, 7, 2), Layer(64, 64, 56), Layer(64, 64, 56, 3), Layer(64, 256, 56), Layer(256, 64, 56),
    Layer(256, 128, 56), Layer(128, 128, 56, 3, 2), Layer(128, 512, 28), Layer(256, 512, 56, 1, 2),
    Layer(512, 128, 28), Layer(128, 128, 28, 3), Layer(512, 256, 28), Layer(256, 256, 28, 3, 2),
    Layer(256, 1024, 14), Layer(512, 1024, 28, 1, 2), Layer(1024, 256, 14), Layer(256, 256, 14, 3),
    Layer(1024, 512, 14), Layer(512, 512, 14, 3, 2), Layer(512, 2048, 7), Layer(1024, 2048, 14, 1, 2),
    Layer(2048, 512, 7), Layer(512, 512, 7, 3),
)  # fmt: skip
DEPTHWISE = (Layer(96, 96, 112, 3, 2, 96), Layer(192, 192, 28, 3, 1, 192), Layer(576, 576, 14, 3, 1, 576))
QUICK = (LAYERS[0], LAYERS[2], LAYERS[3], LAYERS[16])


def cases(quick: bool) -> Iterator[Case]:
    for kind, dtype in TYPES.items():
        for layer in QUICK if quick else (*LAYERS, *DEPTHWISE):
            yield Case(
                family="conv", name=f"{kind} {layer.name}", operations=layer.operations,
                moved=layer.moved(np.dtype("float16" if kind == "bf16" else dtype).itemsize),
                target=TARGETS[kind], build=lambda sets, kind=kind, layer=layer: _contest(sets, kind, layer),
            )  # fmt: skip


def _contest(sets: int, kind: str, layer: Layer) -> Contest:
    import cupy
    import torch
    from cuda_peers import cudnn

    from pumice_cuda.conv import Conv
    from pumice_cuda.epilogue import Epilogue

    images = [_drawn((IMAGES, layer.size, layer.size, layer.channels), TYPES[kind]) for _ in range(sets)]
    weights = _drawn((layer.outputs, layer.kernel, layer.kernel, layer.channels // layer.groups), TYPES[kind])
    scale = cupy.random.default_rng().uniform(0.5e-3, 1e-3, layer.outputs, dtype=np.float32)
    fields: dict[str, Any] = {"scale": scale, "activation": "clip", "low": 0.0} if kind == "s8" else {}
    epilogue = Epilogue(output=TYPES[kind], **fields)
    conv = Conv(weights, _window(layer), groups=layer.groups, precision="float32" if kind == "f32" else "tf32")
    shape = (IMAGES, layer.out_size, layer.out_size, layer.outputs)
    outs = [cupy.empty(shape, TYPES[kind]) for _ in range(sets)]

    @functools.cache
    def wanted() -> Any:
        sums = _torch_conv(_torch(images[0])[CHECKED].double(), _torch(weights).double(), layer)
        sums = cupy.from_dlpack(sums.permute(0, 2, 3, 1).contiguous())
        return cupy.clip(cupy.rint(sums * scale), 0, 127) if kind == "s8" else sums

    def problem(found: Any) -> str | None:
        difference = found.astype(np.float64)[CHECKED] - wanted()
        if kind == "s8":
            off = cupy.abs(difference)
            error = float((off > 0).mean()) if float(off.max()) <= 1 else float(off.max())
        else:
            error = float(cupy.linalg.norm(difference) / cupy.linalg.norm(wanted()))
        return None if error < MOST_ERROR[kind] else f"error {error:.2g}"

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    peer = torch.bfloat16 if kind in {"s8", "bf16"} else torch.float32
    rows = [_torch(x).to(peer) for x in images]
    tw = _torch(weights).to(peer).contiguous(memory_format=torch.channels_last)
    name = f"cuDNN {'tf32' if kind == 'tf32' else str(peer)[6:]}"
    peers: dict[str, list[Work]] = {name: [lambda i=i: _torch_conv(rows[i], tw, layer) for i in range(sets)]}
    if kind == "s8":
        theirs = [cupy.empty(shape, "int8") for _ in range(sets)]
        int8 = cudnn.Convolution(
            images, weights, theirs, scale, stride=layer.stride, padding=layer.kernel // 2, problem=problem
        )
        peers["cuDNN int8"] = [functools.partial(int8, i) for i in range(sets)]
    return Contest(
        check=lambda: problem(conv(images[0], epilogue, out=poisoned(shape, TYPES[kind]))),
        ours=[lambda i=i: conv(images[i], epilogue, out=outs[i]) for i in range(sets)],
        peers=peers,
    )


def _window(layer: Layer) -> Any:
    from pumice.ops.window import Window

    around = (layer.kernel // 2,) * 2
    return Window(
        size=(layer.size,) * 2, kernel=(layer.kernel,) * 2, strides=(layer.stride,) * 2, dilations=(1, 1),
        before=around, after=around, output=(layer.out_size,) * 2,
    )  # fmt: skip


def _drawn(shape: tuple[int, ...], dtype: str) -> Any:
    import cupy

    rng = cupy.random.default_rng()
    if dtype == "int8":
        return rng.integers(-127, 128, shape, dtype=np.int8)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def _torch(array: Any) -> Any:
    """In float32, channels last in memory, channels second in shape."""
    import torch

    return torch.from_dlpack(array.astype(np.float32)).permute(0, 3, 1, 2)


def _torch_conv(x: Any, w: Any, layer: Layer) -> Any:
    import torch

    return torch.nn.functional.conv2d(x, w, stride=layer.stride, padding=layer.kernel // 2, groups=layer.groups)
