"""PyTorch checkpoints as NumPy arrays, without PyTorch.

A checkpoint is a pickle of tensors that name their storage by key; the bytes lie in members of a zip archive (the
present format) or after the pickle (the legacy one). The unpickler builds tensors, ordered dictionaries and plain
containers and refuses every other global, so that a checkpoint cannot run code.
"""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

STORAGE_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@attrs.define
class _Storage:
    """Flat memory that tensors are views of; its values arrive after the pickle is read."""

    dtype: np.dtype
    values: np.ndarray | None = None


@attrs.frozen
class _Tensor:
    """A strided view of a storage, as the checkpoint describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_numpy(self) -> np.ndarray:
        values = self.storage.values
        assert values is not None
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps).copy()


def load(path: Path) -> Any:
    """The checkpoint's object with every tensor as an array. Raises `pickle.UnpicklingError` on any other global."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _load_zip(archive)
    with path.open("rb") as stream:
        return _load_legacy(stream)


def _load_zip(archive: zipfile.ZipFile) -> Any:
    root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
    unpickler = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")))
    found = unpickler.load()
    for key, storage in unpickler.storages.items():
        storage.values = np.frombuffer(archive.read(f"{root}data/{key}"), storage.dtype)
    return _resolved(found)


def _load_legacy(stream: BinaryIO) -> Any:
    magic = _Unpickler(stream).load()
    if magic != LEGACY_MAGIC:
        raise pickle.UnpicklingError("not a PyTorch checkpoint: the legacy magic number is missing")
    _Unpickler(stream).load()  # protocol version
    _Unpickler(stream).load()  # sizes of the writer's C types
    unpickler = _Unpickler(stream)
    found = unpickler.load()
    for key in _Unpickler(stream).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        storage.values = np.frombuffer(stream.read(count * storage.dtype.itemsize), storage.dtype)
    return _resolved(found)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGE_TYPES:
            return np.dtype(STORAGE_TYPES[name])
        raise pickle.UnpicklingError(f"a checkpoint of tensors must not need the global {module}.{name}")

    def persistent_load(self, reference: Any) -> _Storage:
        _, dtype, key = reference[:3]
        return self.storages.setdefault(key, _Storage(dtype))


def _resolved(found: Any) -> Any:
    if isinstance(found, _Tensor):
        return found.to_numpy()
    if isinstance(found, dict):
        return {key: _resolved(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_resolved(value) for value in found)
    return found
