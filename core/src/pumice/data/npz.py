"""`.npz` and `.npy` files, and folders of `.npz` feeds.

An `.npz` is a zip of `.npy` files. An entry that is stored uncompressed is read in place, row by row; a compressed one
is unpacked once, in pieces, to a temporary file that vanishes with the dataset. Neither is ever held in memory whole.
"""

from __future__ import annotations

import io
import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from pumice.data.arrays import ArrayTable, HeldFile, Rows, StoredArray
from pumice.data.dataset import Dataset, IndexedDataset, Sample, with_row
from pumice.data.inputs import ModelInputs
from pumice.data.labels import LabelFile, find_label_file
from pumice.data.opening import label_array
from pumice.errors import DataError
from pumice.strategy import DatasetReader

_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name (PKWARE APPNOTE 4.3.7)."""


@attrs.frozen(kw_only=True)
class NpzReader(DatasetReader):
    """One .npz (or .npy) file: an array an input, samples along the first axis; `labels` or `y` holds labels."""

    name = "npz"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in {".npz", ".npy"}

    def open(self, path: Path, model: Any) -> Dataset:
        inputs = ModelInputs.of(model)
        arrays = stored_arrays(path)
        label_name = label_array(arrays, inputs)
        labels = arrays.pop(label_name) if label_name else None
        notes = []
        if inputs.only is not None and list(arrays) in (["arr_0"], [""]):
            notes.append(f"the only array of '{path.name}' was taken for the input '{inputs.only.name}'")
            arrays = {inputs.only.name: next(iter(arrays.values()))}
        identity = f"{path.name}:{path.stat().st_size}"
        return ArrayTable(f"'{path}'", arrays, inputs, labels=labels, notes=notes, identity=identity)


@attrs.frozen(kw_only=True)
class NpzFolderReader(DatasetReader):
    """A folder of .npz files, one feed each; `labels` inside each, or labels.csv or labels.json beside them."""

    name = "npz-folder"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and any(_feeds(path))

    def open(self, path: Path, model: Any) -> Dataset:
        return NpzFolder(path, ModelInputs.of(model))


class NpzFolder(IndexedDataset):
    """One feed a file, in the order of the file names."""

    def __init__(self, folder: Path, inputs: ModelInputs) -> None:
        self._files = sorted(_feeds(folder))
        label_file = find_label_file(folder)
        self._labels = None if label_file is None else LabelFile(label_file, [f.name for f in self._files])
        with _readable(self._files[0]), zipfile.ZipFile(self._files[0]) as archive:
            names = [Path(entry).stem for entry in archive.namelist()]
        inside = label_array(names, inputs) is not None
        labelled = self._labels is not None or inside
        super().__init__(f"'{folder}'", inputs, labelled=labelled, length=len(self._files))

    def load(self, index: int) -> Sample:
        path = self._files[index]
        with _readable(path), np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        label_name = label_array(arrays, self.inputs)
        label = arrays.pop(label_name) if label_name else None
        if self._labels is not None:
            label = self._labels[index]
        if label is None and self.labelled:
            raise DataError(f"'{path}' has no array 'labels', unlike the first file: add it, or remove it from all")
        if self.inputs.only is not None and list(arrays) == ["arr_0"]:
            arrays = {self.inputs.only.name: arrays["arr_0"]}
        rows = next((len(a) for a in arrays.values() if a.ndim), 1) if self.inputs.stacks else 1
        return Sample(feeds=arrays, label=with_row(label, rows, f"'{path}'"), where=f"'{path}'")

    def identity(self) -> str:
        return ";".join(f"{path.name}:{path.stat().st_size}" for path in self._files)


def _feeds(folder: Path) -> Iterator[Path]:
    """The .npz files of a folder, but not what an operating system hides beside them."""
    return (path for path in folder.glob("*.npz") if not path.name.startswith("."))


def stored_arrays(path: Path) -> dict[str, Rows]:
    """Every array of an `.npz` (by name) or of a `.npy` (by the name ""), ready to be read by rows.

    Raises:
        DataError: the file is damaged, or holds Python objects.
    """
    with _readable(path):
        file = HeldFile(path.open("rb"))
        if path.suffix.lower() == ".npy":
            return {"": _stored(file, f"'{path}'")}
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
            opened = {e.filename.removesuffix(".npy"): _entry(archive, e, file, path) for e in entries}
    if not opened:
        raise DataError(f"'{path}' holds no arrays: save them with numpy.savez under the names of the inputs")
    return opened


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, held: HeldFile, path: Path) -> Rows:
    where = f"array '{entry.filename.removesuffix('.npy')}' of '{path}'"
    if entry.compress_type == zipfile.ZIP_STORED:
        held.file.seek(entry.header_offset)
        header = held.file.read(_LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        held.file.seek(entry.header_offset + _LOCAL_HEADER + name_length + extra_length)
        return _stored(held, where)
    unpacked = tempfile.TemporaryFile(prefix="pumice-")  # noqa: SIM115 - closed, and so removed, with its array
    with archive.open(entry) as compressed:
        for piece in iter(lambda: compressed.read(1 << 20), b""):
            _unpack(piece, unpacked, where)
    unpacked.seek(0)
    return _stored(HeldFile(unpacked), where)


def _unpack(piece: bytes, unpacked: IO[bytes], where: str) -> None:
    try:
        unpacked.write(piece)
        unpacked.flush()
    except OSError as error:
        raise DataError(
            f"{where} cannot be unpacked in '{tempfile.gettempdir()}' ({error.strerror}): make room there, or let "
            "TMPDIR name another folder"
        ) from error


def _stored(held: HeldFile, where: str) -> Rows:
    """The array whose `.npy` header is at the file's position."""
    file = held.file
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"{where} has .npy format version {version}: save it as a plain array with numpy.savez")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects: save it with a numeric or string type")
    if fortran and sum(d > 1 for d in shape) > 1:
        raise DataError(f"{where} is stored column by column: save numpy.ascontiguousarray(x) instead")
    if any(d < 0 for d in shape):
        raise DataError(f"{where} has the impossible shape {list(shape)}: save it again")
    offset = file.tell()
    present, needed = file.seek(0, io.SEEK_END) - offset, math.prod(shape) * dtype.itemsize
    if present < needed:
        raise DataError(
            f"{where} is shorter than its header says ({present} bytes instead of {needed}): it was cut off, write or "
            "copy it again"
        )
    if not shape:
        return np.asarray(StoredArray(held, offset, (1,), dtype, where)[0:1][0])
    return StoredArray(held, offset, shape, dtype, where)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"'{path}' cannot be read as NumPy arrays ({_first_line(error)}): save it again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
