"""From a decoded image to what a model takes.

An image is converted to the channels of the input, resized, cropped from the centre, and becomes
`(pixel * scale - mean) / std`, arranged as NCHW or NHWC. `pumice.toml` beside the data declares this; what it leaves
out is inferred from the shape and type of the model's input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
from PIL.Image import Image, Resampling

from pumice.data.declaration import InputDeclaration
from pumice.data.inputs import Array, InputSpec
from pumice.errors import DataError


@attrs.frozen(kw_only=True)
class Preprocessing:
    """From a decoded image to an array of shape (1, C, H, W) or (1, H, W, C)."""

    resize: int | tuple[int, int] | None
    """The shorter side, or (height, width)."""
    crop: tuple[int, int] | None
    channels: str
    layout: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: np.dtype[Any]
    interpolation: str

    def __call__(self, image: Image) -> Array:
        image = self._cropped(self._resized(image.convert("L" if self.channels == "L" else "RGB")))
        pixels = np.atleast_3d(np.asarray(image))
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        if self.dtype.kind == "f" or (self.scale, *self.mean, *self.std) != (1.0, 0.0, 1.0):
            mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
            values = (pixels * np.float32(self.scale) - mean) / std
        else:
            values = pixels
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], dtype=self.dtype)

    def _resized(self, image: Image) -> Image:
        if self.resize is None:
            return image
        if isinstance(self.resize, int):
            ratio = self.resize / min(image.size)
            width, height = (max(1, round(side * ratio)) for side in image.size)
        else:
            height, width = self.resize
        if image.size == (width, height):
            return image
        return image.resize((width, height), Resampling[self.interpolation.upper()])

    def _cropped(self, image: Image) -> Image:
        if self.crop is None:
            return image
        height, width = self.crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def __str__(self) -> str:
        size = "kept at its own size" if self.resize is None else f"resized to {self.resize}"
        crop = f", cropped to {self.crop}" if self.crop else ""
        return (
            f"{size}{crop}, {self.channels}, {self.layout}, (pixel * {self.scale:.6g} - {_short(self.mean)}) / "
            f"{_short(self.std)}, {self.dtype}"
        )


def preprocessing(spec: InputSpec, entry: InputDeclaration | None, folder: Path) -> Preprocessing:
    """What is declared, completed from the input's shape and type.

    Raises:
        DataError: the input is not an image, or the declaration contradicts it.
    """
    entry = entry or InputDeclaration()
    shape = spec.shape or (None, None, None, None)
    if len(shape) != 4:
        raise DataError(f"'{folder}' holds images but input '{spec.name}' {spec} is no image: it needs four axes")
    layout = entry.layout or ("NHWC" if shape[3] in {1, 3} and shape[1] not in {1, 3} else "NCHW")
    depth, height, width = (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])
    channels = entry.channels or ("L" if depth == 1 else "RGB")
    have = 1 if channels == "L" else 3
    if isinstance(depth, int) and depth != have:
        raise DataError(
            f"input '{spec.name}' {spec} takes {depth} channels in {layout} but {channels} images have {have}: "
            "declare `channels` and `layout` in pumice.toml"
        )
    for key, values in (("mean", entry.mean), ("std", entry.std)):
        if len(values) not in {1, have} or (key == "std" and 0.0 in values):
            raise DataError(
                f"'{folder}': `{key}` of input '{spec.name}' must be one number, or one a channel ({have}), and no "
                f"`std` 0; not {_short(values) if values else 'none'}: correct it in pumice.toml"
            )
    dtype = _dtype(entry.dtype, folder) if entry.dtype else (spec.dtype or np.dtype(np.float32))
    resize: int | tuple[int, int] | None = entry.resize
    crop = (entry.crop, entry.crop) if isinstance(entry.crop, int) else entry.crop
    if resize is None and crop is None and isinstance(height, int) and isinstance(width, int):
        resize = (height, width)
    return Preprocessing(
        resize=resize,
        crop=crop,
        channels=channels,
        layout=layout,
        scale=entry.scale if entry.scale is not None else (1 / 255 if dtype.kind == "f" else 1.0),
        mean=entry.mean,
        std=entry.std,
        dtype=dtype,
        interpolation=entry.interpolation,
    )


def _dtype(name: str, folder: Path) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiu":
        raise DataError(f"'{folder}': `dtype` '{name}' is no type of numbers: write e.g. 'float32' in pumice.toml")
    return dtype


def _short(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(f'{v:g}' for v in values)}]"
