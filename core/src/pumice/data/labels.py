"""Labels kept in a file of their own: `labels.csv` or `labels.json` beside the samples, or any file given as labels.

By file name: `{"photo.png": 3}`, or CSV rows `photo.png,3` (a header line is allowed). By position: a JSON list, a
`.npy` or `.npz`, or a CSV of one column. A text that stands for a number becomes that number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pumice.errors import DataError, nearest

LABEL_FILES = ("labels.csv", "labels.json")


class LabelFile(Sequence[Any]):
    """The labels of named samples, in the order of the samples.

    Raises:
        DataError: the file cannot be read, lacks a sample, or has another number of labels than there are samples.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        found = _read(path)
        if isinstance(found, dict):
            for name in names:
                if name not in found:
                    raise DataError(f"'{path}' has no label for '{name}'{nearest(name, found)}")
            self._labels = [found[name] for name in names]
        elif len(found) != len(names):
            raise DataError(f"'{path}' has {len(found)} labels for {len(names)} samples: give one label a sample")
        else:
            self._labels = found

    def __getitem__(self, index: Any) -> Any:
        return self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


def find_label_file(folder: Path) -> Path | None:
    """`labels.csv` or `labels.json` in a folder."""
    return next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)


def read_label_list(path: Path) -> Sequence[Any]:
    """Labels by position.

    Raises:
        DataError: the file does not exist or is not a list of labels.
    """
    found = _read(path)
    return list(found.values()) if isinstance(found, dict) else found


def value_of(text: str) -> Any:
    """The number that a text stands for, else the text."""
    for cast in (int, float):
        try:
            return cast(text)
        except ValueError:
            continue
    return text


def _read(path: Path) -> dict[str, Any] | list[Any]:
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text("utf-8"))
        elif path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                found = archive[archive.files[0]]
        else:
            found = _from_csv(path)
    except (OSError, ValueError, IndexError, RecursionError, csv.Error) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"the labels in '{path}' cannot be read ({reason}): check the file") from error
    if not isinstance(found, dict | list | np.ndarray):
        raise DataError(f"'{path}' holds no list of labels: give a list, or a table from file name to label")
    return found if isinstance(found, dict) else list(found)


def _from_csv(path: Path) -> dict[str, Any] | list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("it is empty")
    if rows[0][-1].strip().lower() in {"label", "labels", "class", "y"}:
        rows = rows[1:]
    if all(len(row) == 1 for row in rows):
        return [value_of(row[0]) for row in rows]
    return {row[0]: value_of(row[1]) if len(row) == 2 else [value_of(v) for v in row[1:]] for row in rows}
