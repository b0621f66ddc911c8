"""Snapshots: everything a training needs to go on where it stopped, in one file.

The file is a NumPy archive of arrays (parameters, moments, averages, statistics, the best so far), and one text that
holds the numbers and says which run it belongs to. It is written under a temporary name, flushed and renamed, so a
killed run leaves the last snapshot whole and loses only the steps since.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from pumice.errors import DataError
from pumice.ops.record import Array

_TEXT = "state.json"


@attrs.frozen(eq=False)
class Snapshot:
    """Where a training stands."""

    arrays: Mapping[str, Mapping[str, Array]]
    """Groups of arrays by name: `parameters`, `statistics`, `average`, `best`, `moment 0`, ..."""
    numbers: Mapping[str, Any]
    """What is not an array: position, history, counters. JSON."""

    def save(self, path: Path, run: str) -> None:
        """Write it, whole or not at all; `run` identifies the run."""
        flat = {f"{group}/{name}": value for group, held in self.arrays.items() for name, value in held.items()}
        text = np.frombuffer(json.dumps({"run": run, **self.numbers}).encode(), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with work.open("wb") as file:
                np.savez(file, **flat, **{_TEXT: text})  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, run: str) -> Snapshot | None:
        """The snapshot in a file; None if there is no file.

        Raises:
            DataError: it is not a snapshot, or one of another run.
        """
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                flat = {name: archive[name] for name in archive.files}
            numbers = json.loads(flat.pop(_TEXT).tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"'{path}' is not a snapshot of a training ({error}): delete it, or name another file"
            ) from None
        if numbers.pop("run") != run:
            raise DataError(
                f"the snapshot '{path}' belongs to a training with other settings, data or another model: delete it to "
                f"start over, or name another file"
            )
        arrays: dict[str, dict[str, Array]] = {}
        for key, value in flat.items():
            group, _, name = key.partition("/")
            arrays.setdefault(group, {})[name] = value
        return cls(arrays, numbers)
