"""Datasets over whole arrays: one array an input, in memory or on disk, the samples along the first axis.

For an input of rank r, an array of rank r holds the samples as rows of the input's own first axis (a fixed first axis
of N takes N rows at a time), and an array of rank r + 1 holds complete feeds. An input that is the same for every
sample (a sampling rate, an initial state) is given once, exactly as the model wants it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Protocol

import attrs
import numpy as np

from pumice.data.dataset import IndexedDataset, Sample
from pumice.data.inputs import Array, InputSpec, ModelInputs, names_time
from pumice.errors import DataError

LABEL_NAMES = ("labels", "label", "y")


class Rows(Protocol):
    """An array that is read by ranges of its first axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: slice, /) -> Array: ...


class HeldFile:
    """An open file that is read at offsets, by any number of threads, and closed when nobody holds it any more."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._lock = threading.Lock()
        weakref.finalize(self, file.close)

    def read_at(self, offset: int, size: int) -> bytes:
        with self._lock:
            self.file.seek(offset)
            return self.file.read(size)


class StoredArray:
    """A C-ordered array inside a file. Rows are read when asked for, so it takes no memory; threads may share it."""

    def __init__(self, held: HeldFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
        self._held, self._offset, self._where = held, offset, where
        self.shape, self.dtype = shape, dtype
        self._row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        wanted = max(stop - start, 0) * self._row
        data = self._held.read_at(self._offset + start * self._row, wanted)
        if len(data) < wanted:
            raise DataError(f"{self._where} is shorter than its header says: it was cut off, write or copy it again")
        return np.frombuffer(data, self.dtype).reshape(max(stop - start, 0), *self.shape[1:])


@attrs.frozen
class _Column:
    """How one array is cut into samples."""

    count: int
    cut: Callable[[int], Array]
    constant: bool
    """True if the array is one feed that may serve every sample."""


class ArrayTable(IndexedDataset):
    """One array an input, and labels."""

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, Any],
        inputs: ModelInputs,
        *,
        labels: Any = None,
        notes: Iterable[str] = (),
        identity: str = "",
    ) -> None:
        arrays = {key: _rows(array) for key, array in arrays.items()}
        if inputs.specs is not None:  # missing and unknown names are told before anything is cut
            inputs.check_names(arrays, name)
        columns = {key: _column(array, inputs.spec(key)) for key, array in arrays.items()}
        count = _common_count(columns, name)
        super().__init__(name, inputs, labelled=labels is not None, length=count, notes=notes)
        self._columns = columns
        self._identity = identity or name
        self._labels, self._rows = None, 1
        if labels is not None:
            self._labels = _rows(labels)
            self._rows = self._rows_per_label(arrays, len_of(self._labels))
        self._note_remainder(arrays)

    def load(self, index: int) -> Sample:
        feeds = {n: c.cut(0 if c.constant and c.count == 1 else index) for n, c in self._columns.items()}
        label = None
        if self._labels is not None:
            label = np.asarray(self._labels[index * self._rows : (index + 1) * self._rows])
        return Sample(feeds=feeds, label=label, where=f"{self.name}, sample {index}")

    def identity(self) -> str:
        return self._identity

    def _rows_per_label(self, arrays: Mapping[str, Rows], labels: int) -> int:
        """1, or the fixed batch of the model when there is a label a row."""
        count = self.count()
        if labels == count:
            return 1
        fixed = {_fixed_first(self.inputs.spec(n)) for n in arrays if not self._columns[n].constant} - {None}
        for rows in fixed:
            if rows is not None and labels // rows == count:
                return rows
        raise DataError(f"{self.name} has {count} samples but {labels} labels: give one label a sample")

    def _note_remainder(self, arrays: Mapping[str, Rows]) -> None:
        for name, array in arrays.items():
            spec = self.inputs.spec(name)
            fixed = _fixed_first(spec)
            if fixed and spec and len(array.shape) == spec.rank and not self._columns[name].constant:
                left = array.shape[0] % fixed
                if left:
                    self.notes.append(
                        f"the model takes exactly {fixed} rows of '{name}' at a time: the last {left} are left out"
                    )


def len_of(array: Rows) -> int:
    """Length of the first axis; a scalar counts as one."""
    return array.shape[0] if array.shape else 1


def _rows(array: Any) -> Rows:
    return array if isinstance(array, StoredArray) else np.asarray(array)


def _fixed_first(spec: InputSpec | None) -> int | None:
    first = spec.shape[0] if spec and spec.shape else None
    return first if isinstance(first, int) else None


def _column(array: Rows, spec: InputSpec | None) -> _Column:
    rank = len(array.shape)
    if rank == 0:
        return _Column(1, lambda _: np.asarray(array), constant=True)
    if spec is not None and spec.shape is not None and rank == len(spec.shape) + 1:
        return _Column(array.shape[0], lambda i: array[i : i + 1][0], constant=False)
    step = 1
    if spec is not None and spec.shape and rank == len(spec.shape):
        first = spec.shape[0]
        if names_time(first) or first == array.shape[0]:
            return _Column(1, lambda _: array[0 : array.shape[0]], constant=True)
        step = first if isinstance(first, int) and 0 < first < array.shape[0] else 1
    return _Column(array.shape[0] // step, lambda i: array[i * step : (i + 1) * step], constant=False)


def _common_count(columns: Mapping[str, _Column], where: str) -> int:
    varying = {name: column.count for name, column in columns.items() if not column.constant}
    if len(set(varying.values())) > 1:
        told = ", ".join(f"'{name}' has {count}" for name, count in varying.items())
        raise DataError(f"{where}: the arrays hold different numbers of samples ({told}); give one of each a sample")
    return next(iter(varying.values()), 1 if columns else 0)
