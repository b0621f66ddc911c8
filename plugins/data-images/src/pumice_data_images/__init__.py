"""Folders of images: `folder/cat/1.png` (a label a class folder) or `folder/1.png` (no labels, or a `labels.csv`).

A folder is taken for one of images when images lie in it or in a folder of it, but not when it has the parts
`calibration` and `test`: those are opened one by one, each in whatever form it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice import DatasetReader, hookimpl

if TYPE_CHECKING:
    from pumice.data import Dataset


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def images_in(folder: Path) -> list[Path]:
    """Its image files, in order of name; not those of its folders."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


@attrs.frozen(kw_only=True)
class ImageFolderReader(DatasetReader):
    """A folder of images, one class a subfolder, preprocessed as a pumice.toml beside them declares."""

    name = "images"

    def recognises(self, path: Path) -> bool:
        from pumice.data.splits import subsets_of

        if not path.is_dir() or subsets_of(path) is not None:
            return False
        return any(images_in(place) for place in (path, *filter(Path.is_dir, path.iterdir())))

    def open(self, path: Path, model: Any) -> Dataset:
        from pumice.data.declaration import read_declaration
        from pumice.data.inputs import ModelInputs
        from pumice_data_images.folder import ImageFolder

        return ImageFolder(path, ModelInputs.of(model), read_declaration(path))


@hookimpl
def pumice_datasets() -> Iterator[type[DatasetReader]]:
    yield ImageFolderReader
