"""Folders of images: `folder/cat/1.png` (a label a class folder) or `folder/1.png` (no labels, or a `labels.csv`).

An image is decoded, turned upright by its EXIF tag, converted to the channels of the input, resized, cropped from the
centre, and becomes `(pixel * scale - mean) / std`, arranged as NCHW or NHWC. `pumice.toml` beside the data declares
this; what it leaves out is inferred from the shape and type of the model's input, and a note says what was assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.data.dataset import Dataset, IndexedDataset, Sample, with_row
from pumice.data.declaration import Declaration, InputDeclaration, read_declaration
from pumice.data.inputs import Array, InputSpec, ModelInputs
from pumice.data.labels import LabelFile, find_label_file
from pumice.errors import DataError, nearest
from pumice.strategy import DatasetReader

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@attrs.frozen(kw_only=True)
class ImageFolderReader(DatasetReader):
    """A folder of images, one class a subfolder, preprocessed as a pumice.toml beside them declares (needs Pillow)."""

    name = "images"

    def recognises(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        entries = list(path.iterdir())
        inside = (file for entry in entries if entry.is_dir() for file in entry.iterdir())
        return any(map(_is_image, entries)) or any(map(_is_image, inside))

    def open(self, path: Path, model: Any) -> Dataset:
        return ImageFolder(path, ModelInputs.of(model), read_declaration(path))


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

    def __call__(self, image: Image.Image) -> Array:
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

    def _resized(self, image: Image.Image) -> Image.Image:
        from PIL.Image import Resampling

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

    def _cropped(self, image: Image.Image) -> Image.Image:
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


class ImageFolder(IndexedDataset):
    """Images in the order of their paths."""

    def __init__(self, folder: Path, inputs: ModelInputs, declared: Declaration) -> None:
        self._pillow = _pillow(folder)
        self._files, self._labels, notes = _scan(folder, declared)
        spec, entry, constants = _image_input(inputs, declared, folder)
        self._input, self._constants = spec.name, constants
        self._prepare = preprocessing(spec, entry, folder)
        if entry is None:
            notes.append(
                f"no pumice.toml beside the images: for input '{spec.name}' each image is assumed to be "
                f"{self._prepare}; declare it if the model was trained otherwise"
            )
        super().__init__(f"'{folder}'", inputs, labelled=self._labels is not None, length=len(self._files), notes=notes)

    def load(self, index: int) -> Sample:
        path = self._files[index]
        try:
            with self._pillow.Image.open(path) as image:
                pixels = self._prepare(self._pillow.ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, MemoryError, self._pillow.Image.DecompressionBombError) as error:
            raise DataError(f"the image '{path}' cannot be read ({error}): replace or remove it") from error
        label = None if self._labels is None else with_row(self._labels[index], 1, f"'{path}'")
        return Sample(feeds={self._input: pixels, **self._constants}, label=label, where=f"'{path}'")

    def identity(self) -> str:
        return ";".join(f"{path.name}:{path.stat().st_size}" for path in self._files)


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


def _scan(folder: Path, declared: Declaration) -> tuple[list[Path], Any, list[str]]:
    """Image files, their labels (or None), and notes."""
    flat = sorted(f for f in folder.iterdir() if _is_image(f))
    if flat:
        path = find_label_file(folder)
        return flat, None if path is None else LabelFile(path, [f.name for f in flat]), []
    classes = {d.name: sorted(f for f in d.iterdir() if _is_image(f)) for d in sorted(folder.iterdir()) if d.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    numbers, note = _class_numbers(list(classes), declared)
    files = [f for found in classes.values() for f in found]
    labels = np.repeat([numbers[name] for name in classes], [len(found) for found in classes.values()])
    return files, labels, [note]


def _class_numbers(names: list[str], declared: Declaration) -> tuple[dict[str, int], str]:
    if declared.classes:
        for name in names:
            if name not in declared.classes:
                raise DataError(f"'{declared.path}' lists no class '{name}'{nearest(name, declared.classes)}")
        return {name: declared.classes.index(name) for name in names}, "labels follow the `classes` of pumice.toml"
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}, "labels are the numbers that the class folders are named with"
    listed = ", ".join(f"{i} = {name}" for i, name in enumerate(names[:4])) + (", ..." if len(names) > 4 else "")
    return {name: i for i, name in enumerate(names)}, f"labels number the class folders in order of name ({listed})"


def _image_input(
    inputs: ModelInputs, declared: Declaration, folder: Path
) -> tuple[InputSpec, InputDeclaration | None, Mapping[str, Array]]:
    """The input that takes the image, its declaration, and the constants declared for other inputs."""
    for name in declared.inputs:
        if inputs.specs is not None and inputs.spec(name) is None:
            raise DataError(f"'{declared.path}': the model has no input '{name}'{nearest(name, inputs.names)}")
    types = {name: spec.dtype if (spec := inputs.spec(name)) else None for name in declared.inputs}
    constants = {n: array for n, dtype in types.items() if (array := declared.constant(n, dtype)) is not None}
    specs = inputs.specs or (InputSpec(name="image", dtype=None, shape=None),)
    likely = [s for s in specs if len(specs) == 1 or s.name in declared.inputs or s.rank == 4]
    images = [s for s in likely if s.name not in constants]
    if len(images) != 1:
        raise DataError(
            f"'{folder}' holds images but it is not clear which of the inputs ({', '.join(inputs.names)}) takes them: "
            "declare it as [inputs.NAME] in pumice.toml"
        )
    return images[0], declared.inputs.get(images[0].name), constants


def _pillow(folder: Path) -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise DataError(f"'{folder}' holds images, which Pillow reads: run `pip install pillow`") from error
    return PIL


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _short(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(f'{v:g}' for v in values)}]"
