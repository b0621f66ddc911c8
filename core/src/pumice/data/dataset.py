"""Samples, batches, and the contract of a dataset.

A dataset is a finite stream of samples that can be read again and again and always yields the same, in the same order.
A *sample* feeds the model once: a dictionary from input name to array with every axis of the input, the first usually
a batch axis of length 1. `batches` stacks neighbouring samples along axis 0 where the model allows it and all other
axes agree (so inputs of varying width simply make smaller batches), and yields samples one by one elsewhere.

Every sample passes `ModelInputs.conform` on its way out: wrong data stops at the first bad sample with a sentence.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.data.inputs import Array, Feeds, ModelInputs
from pumice.errors import DataError

DEFAULT_BATCH = 32
FINGERPRINT_SAMPLES = 256


@attrs.frozen(kw_only=True, eq=False)
class Sample:
    """What one feed of the model needs."""

    feeds: Feeds
    label: Any = None
    """None if there is none; otherwise an array whose first axis counts rows, as that of the feeds does."""
    where: str = "the data"
    """Names the sample in errors, e.g. `'photos/cat/3.png'` or `'x.npz', sample 12`."""


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Stacked samples."""

    feeds: Feeds
    labels: Any = None
    """Array with the samples first (of objects where labels differ in shape), or None."""
    size: int
    """How many samples of the dataset it holds."""


class Dataset(abc.ABC):
    """Base of every dataset; a subclass implements `read`.

    Attributes:
        name: for people, e.g. the path.
        inputs: what the model asks of a sample.
        labelled: whether samples carry labels.
        length: number of samples, None if it is not known without reading everything.
        notes: sentences about what was inferred or converted; grows while samples are first read.
    """

    def __init__(
        self,
        name: str,
        inputs: ModelInputs | None = None,
        *,
        labelled: bool = False,
        length: int | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.inputs = inputs or ModelInputs()
        self.labelled = labelled
        self.length = length
        self.notes = list(notes)

    @abc.abstractmethod
    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        """Samples as they are, unchecked: all, or those at `indices`, in that order.

        Raises:
            DataError: something cannot be read.
        """

    def identity(self) -> str:
        """Text that changes when the data behind changes, without reading samples; part of the fingerprint."""
        return self.name

    def samples(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        """Samples checked against the model's inputs.

        Raises:
            DataError: the first sample that cannot be read or does not fit.
        """
        for sample in self.read(indices):
            feeds = self.inputs.conform(sample.feeds, sample.where, self.notes)
            yield attrs.evolve(sample, feeds=feeds)

    def batches(self, batch_size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most `batch_size` (None: 32) samples, the first `limit` samples in all.

        Raises:
            DataError: the first sample that cannot be read or does not fit.
        """
        size = batch_size or DEFAULT_BATCH
        pending: list[Sample] = []
        for sample in itertools.islice(self.samples(), limit):
            if pending and (len(pending) >= size or not self._stack_together(pending[-1], sample)):
                yield _stacked(pending)
                pending = []
            pending.append(sample)
        if pending:
            yield _stacked(pending)

    def select(self, indices: Sequence[int] | slice | Array) -> Selection:
        """The samples at `indices`, in that order."""
        if isinstance(indices, slice):
            indices = range(*indices.indices(self.count()))
        return Selection(self, indices)

    def split(self, count: int) -> tuple[Selection, Selection]:
        """`count` samples spread evenly over the dataset, and the others. Deterministic.

        One sample is taken from each of `count` equal stretches, at a place in the stretch that a golden-ratio
        sequence sets: a plain stride would fall in step with data whose classes take turns.
        """
        total = self.count()
        if not 0 < count < total:
            raise DataError(f"cannot take {count} of the {total} samples of {self.name} and leave some: give more data")
        golden = (np.sqrt(5.0) - 1.0) / 2.0
        places = (np.arange(count) + np.modf(np.arange(count) * golden)[0]) * (total / count)
        chosen = np.unique(np.minimum(places.astype(np.int64), total - 1))
        others = np.setdiff1d(np.arange(total, dtype=np.int64), chosen, assume_unique=True)
        return Selection(self, chosen), Selection(self, others)

    def count(self) -> int:
        """The number of samples, counted by reading if it is not known."""
        if self.length is None:
            self.length = sum(1 for _ in self.read())
        return self.length

    def fingerprint(self) -> str:
        """A hash of the identity and of up to 256 samples spread evenly over the data."""
        digest = hashlib.sha256(self.identity().encode())
        total = self.count()
        indices = np.unique(np.linspace(0, total - 1, min(total, FINGERPRINT_SAMPLES)).astype(np.int64))
        for sample in self.read(indices.tolist()):
            for name, array in [*sorted(sample.feeds.items()), ("label", sample.label)]:
                if array is not None:
                    _digest(digest, name, np.asarray(array))
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[Sample]:
        return self.samples()

    def __repr__(self) -> str:
        many = "an unknown number of" if self.length is None else self.length
        return f"<{type(self).__name__} {self.name}: {many} samples{', labelled' if self.labelled else ''}>"

    def _stack_together(self, one: Sample, other: Sample) -> bool:
        if not self.inputs.stacks or one.feeds.keys() != other.feeds.keys():
            return False
        return all(
            _is_row(a) and _is_row(b) and a.shape == b.shape and a.dtype == b.dtype
            for a, b in ((one.feeds[name], other.feeds[name]) for name in one.feeds)
        )


class IndexedDataset(Dataset):
    """Base of datasets whose samples can be read in any order: a subclass implements `load` and gives the length."""

    @abc.abstractmethod
    def load(self, index: int) -> Sample:
        """The sample at `index`, unchecked."""

    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        return (self.load(int(i)) for i in (range(self.count()) if indices is None else indices))


class Selection(Dataset):
    """Some samples of another dataset."""

    def __init__(self, base: Dataset, indices: Sequence[int] | Array) -> None:
        total = base.count()
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and (chosen.min() < -total or chosen.max() >= total):
            raise DataError(f"{base.name} has {total} samples: the indices must lie between 0 and {total - 1}")
        super().__init__(base.name, base.inputs, labelled=base.labelled, length=len(chosen))
        self.notes = base.notes  # shared: what the base converts while it is read through here belongs to both
        self.base = base
        self.indices = np.where(chosen < 0, chosen + total, chosen)

    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        wanted = self.indices if indices is None else self.indices[np.asarray(indices, dtype=np.int64)]
        return self.base.read(wanted)  # type: ignore[arg-type]

    def identity(self) -> str:
        return f"{self.base.identity()}[{hashlib.sha256(self.indices.tobytes()).hexdigest()}]"


def with_row(label: Any, rows: int, where: str) -> Any:
    """A label given for a sample of `rows` rows, with the leading axis that labels carry.

    Raises:
        DataError: a sample of several rows has another number of labels.
    """
    if label is None:
        return None
    array = np.asarray(label)
    if array.dtype.kind == "U":
        array = array.astype(object)
    if array.ndim and len(array) == rows:
        return array
    if rows > 1:
        have = len(array) if array.ndim else 1
        raise DataError(f"{where} has {rows} rows but {have} labels: give one label a row")
    return array[None]


def _is_row(array: Array) -> bool:
    return array.ndim > 0 and array.shape[0] == 1


def _stacked(samples: list[Sample]) -> Batch:
    first = samples[0]
    if len(samples) == 1:
        return Batch(feeds=first.feeds, labels=first.label, size=1)
    feeds = {name: np.concatenate([s.feeds[name] for s in samples]) for name in first.feeds}
    return Batch(feeds=feeds, labels=_stacked_labels([s.label for s in samples]), size=len(samples))


def _stacked_labels(labels: list[Any]) -> Any:
    if any(label is None for label in labels):
        return None
    arrays = [np.asarray(label) for label in labels]
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    ragged = np.empty(sum(len(array) for array in arrays), dtype=object)
    for i, row in enumerate(itertools.chain.from_iterable(arrays)):
        ragged[i] = row
    return ragged


def _digest(digest: Any, name: str, array: Array) -> None:
    digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
    digest.update(repr(array.tolist()).encode() if array.dtype.kind in "OU" else np.ascontiguousarray(array).tobytes())
