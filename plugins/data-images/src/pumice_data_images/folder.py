"""The images of a folder as samples, in the order of their paths, decoded and turned upright one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pumice.data.dataset import IndexedDataset, Sample, with_row
from pumice.data.declaration import Declaration, InputDeclaration
from pumice.data.inputs import Array, InputSpec, ModelInputs
from pumice.data.labels import LabelFile, find_label_file
from pumice.errors import DataError, nearest
from pumice_data_images import images_in
from pumice_data_images.preprocessing import preprocessing


class ImageFolder(IndexedDataset):
    """Images in the order of their paths."""

    def __init__(self, folder: Path, inputs: ModelInputs, declared: Declaration) -> None:
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
            with Image.open(path) as image:
                pixels = self._prepare(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            raise DataError(f"the image '{path}' cannot be read ({error}): replace or remove it") from error
        label = None if self._labels is None else with_row(self._labels[index], 1, f"'{path}'")
        return Sample(feeds={self._input: pixels, **self._constants}, label=label, where=f"'{path}'")

    def identity(self) -> str:
        return ";".join(f"{path.name}:{path.stat().st_size}" for path in self._files)


def _scan(folder: Path, declared: Declaration) -> tuple[list[Path], Any, list[str]]:
    """Image files, their labels (or None), and notes."""
    flat = images_in(folder)
    if flat:
        path = find_label_file(folder)
        return flat, None if path is None else LabelFile(path, [f.name for f in flat]), []
    classes = {d.name: images_in(d) for d in sorted(folder.iterdir()) if d.is_dir()}
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
