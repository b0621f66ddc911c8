"""The forms of data that core reads, and folders that hold two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from pumice.data.dataset import Dataset
from pumice.data.npz import NpzFolderReader, NpzReader
from pumice.data.opening import open_path
from pumice.data.splits import subsets_of
from pumice.strategy import DatasetReader


@attrs.frozen(kw_only=True)
class FolderOfPartsReader(DatasetReader):
    """A folder with the parts `calibration` and `test`; opened as one dataset it is its `test` part."""

    name = "calibration-and-test"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and subsets_of(path) is not None

    def open(self, path: Path, model: Any) -> Dataset:
        parts = subsets_of(path)
        assert parts is not None
        dataset = open_path(parts[1], model)
        dataset.notes.append(f"'{path}' has parts: this is '{parts[1].name}'")
        return dataset


BUILTIN_READERS: tuple[type[DatasetReader], ...] = (FolderOfPartsReader, NpzFolderReader, NpzReader)
