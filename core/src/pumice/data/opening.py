"""Opening data of any form: arrays, lists, functions and paths all become a `Dataset`."""

from __future__ import annotations

import itertools
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np

from pumice.data.arrays import LABEL_NAMES, ArrayTable
from pumice.data.dataset import Dataset, Sample, with_row
from pumice.data.feeds import FeedList, Generated
from pumice.data.inputs import ModelInputs, ModelLike
from pumice.errors import DataError


def open_dataset(source: Any, model: ModelLike | None = None, *, labels: Any = None) -> Dataset:
    """A dataset that feeds the inputs of a model.

    Args:
        source: a `Dataset`; a path that an installed reader recognises (`.npz`, folders of `.npz` or of images, `.csv`,
            `.jsonl`); a dictionary from input name to array, or one array for a model with one input, samples first; a
            pair of either and labels; a list of feeds or of (feed, label) pairs; a function that returns a new iterator
            over such feeds at every call.
        model: an `onnx_ir.Model` or its path; None checks the data only against itself.
        labels: labels given apart: an array or list, one a sample, or the path of a `.npy`, `.npz`, `.json` or `.csv`.

    Raises:
        DataError: nothing is there, it cannot be read, or its first sample does not fit the model.
    """
    inputs = ModelInputs.of(model)
    dataset = _opened(source, inputs, model)
    if labels is not None:
        dataset = Labelled(dataset, _labels(labels))
    if next(dataset.samples(), None) is None:
        raise DataError(f"{dataset.name} holds no samples: give at least one")
    return dataset


class Bound(Dataset):
    """A dataset made elsewhere, checked against the inputs of this model."""

    def __init__(self, base: Dataset, inputs: ModelInputs) -> None:
        super().__init__(base.name, inputs, labelled=base.labelled, length=base.length, notes=base.notes)
        self.base = base

    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        return self.base.read(indices)

    def identity(self) -> str:
        return self.base.identity()


class Labelled(Dataset):
    """A dataset with labels given apart."""

    def __init__(self, base: Dataset, labels: Sequence[Any]) -> None:
        count = base.count()
        if len(labels) != count:
            raise DataError(f"{base.name} has {count} samples but {len(labels)} labels: give one label a sample")
        super().__init__(base.name, base.inputs, labelled=True, length=count)
        self.notes = base.notes
        self.base = base
        self._labels = labels

    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        order = range(self.count()) if indices is None else indices
        for index, sample in zip(order, self.base.read(indices), strict=True):
            yield attrs.evolve(sample, label=with_row(self._labels[int(index)], 1, sample.where))

    def identity(self) -> str:
        return self.base.identity()


def _opened(source: Any, inputs: ModelInputs, model: ModelLike | None) -> Dataset:
    if isinstance(source, Dataset):
        return source if inputs.specs is None or source.inputs == inputs else Bound(source, inputs)
    if isinstance(source, str | Path):
        return open_path(Path(source), model)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Mapping | np.ndarray):
        return _table(source[0], inputs, source[1])
    if isinstance(source, Mapping | np.ndarray):
        return _table(source, inputs)
    if callable(source):
        return Generated("the generated samples", source, inputs)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return FeedList("the list of samples", source, inputs)
    if isinstance(source, Iterable):
        if isinstance(source, Iterator):
            raise DataError("an iterator can be read only once: pass a list, or the function that makes the iterator")
        return Generated("the samples", lambda: iter(source), inputs)
    raise DataError(f"a {type(source).__name__} is no data: give a path, arrays, a list of feeds or a function")


def open_path(path: Path, model: ModelLike | None) -> Dataset:
    """The dataset at a path, by the first installed reader that recognises it; plugins are asked before core."""
    from pumice.registry import registry
    from pumice.strategy import DatasetReader

    if not path.exists():
        raise DataError(f"there is no data at '{path}': check the path")
    known = registry()
    readers = [known.make(DatasetReader, name) for name in known.strategies("dataset")]
    readers.sort(key=lambda reader: known.origin(type(reader)).entry_point == "core")
    for reader in readers:
        if reader.recognises(path):
            return reader.open(path, cast(Any, model))
    for name, what, holds in (("images", "images", _holds_images), ("text", "rows of text", _holds_rows)):
        if name not in known.strategies("dataset") and holds(path):
            raise DataError(f"'{path}' holds {what}, which no installed reader knows: pip install pumice-data-{name}")
    forms = ", ".join(reader.name for reader in readers)
    raise DataError(f"'{path}' is no form of data that an installed reader knows ({forms}); see `pumice plugins`")


def _holds_rows(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in {".csv", ".tsv", ".jsonl", ".ndjson"}


def _holds_images(folder: Path) -> bool:
    """Whether an image lies in the folder, or in a folder of it."""
    files = itertools.chain(folder.glob("*"), folder.glob("*/*"))
    return any(str(mimetypes.guess_type(file.name)[0]).startswith("image/") for file in files)


def _table(source: Any, inputs: ModelInputs, labels: Any = None) -> Dataset:
    if isinstance(source, np.ndarray):
        if inputs.specs is not None and inputs.only is None:
            names = ", ".join(inputs.names)
            raise DataError(f"one array cannot feed a model with the inputs {names}: give a dictionary of arrays")
        source = {inputs.only.name if inputs.only else "input": source}
    arrays = dict(source)
    if labels is None:
        name = label_array(arrays, inputs)
        labels = arrays.pop(name) if name else None
    return ArrayTable("the arrays", arrays, inputs, labels=labels)


def label_array(arrays: Iterable[str], inputs: ModelInputs) -> str | None:
    """Which of the named arrays holds labels: `labels`, `label` or `y`, unless the model has such an input."""
    return next((name for name in LABEL_NAMES if name in set(arrays) and name not in inputs.names), None)


def _labels(labels: Any) -> Sequence[Any]:
    if isinstance(labels, str | Path):
        from pumice.data.labels import read_label_list

        return read_label_list(Path(labels))
    if isinstance(labels, np.ndarray):
        return list(labels) if labels.ndim else [labels[()]]
    return list(itertools.chain(labels))
