"""Datasets over feeds given one by one: a list, or a function that returns a fresh iterator at every call.

An item is a dictionary from input name to array, an array (for a model with one input), or a pair of either and a
label. A feed is one sample however many rows it has; only feeds of one row are stacked with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pumice.data.dataset import Dataset, IndexedDataset, Sample, with_row
from pumice.data.inputs import ModelInputs
from pumice.errors import DataError


class FeedList(IndexedDataset):
    """Feeds held in a list."""

    def __init__(self, name: str, items: Sequence[Any], inputs: ModelInputs) -> None:
        labelled = bool(items) and _is_pair(items[0])
        super().__init__(name, inputs, labelled=labelled, length=len(items))
        self._items = items

    def load(self, index: int) -> Sample:
        return _sample(self._items[index], self, f"{self.name}, sample {index}")


class Generated(Dataset):
    """Feeds from a function; read in order, so a selection must be in increasing order."""

    def __init__(self, name: str, make: Callable[[], Iterable[Any]], inputs: ModelInputs) -> None:
        items, again = make(), make()
        if isinstance(items, Iterator) and items is again:
            raise DataError(f"{name} come from one and the same iterator: return a new iterator at every call")
        first = next(iter(items), None)
        super().__init__(name, inputs, labelled=_is_pair(first))
        self._make = make
        self._seen = first is not None

    def read(self, indices: Sequence[int] | None = None) -> Iterator[Sample]:
        wanted = None if indices is None else _increasing(indices, self.name)
        found = 0
        target = None if wanted is None else next(wanted, -1)
        for index, item in enumerate(self._make()):
            found += 1
            if target is not None:
                if target < 0:
                    return
                if index != target:
                    continue
                target = next(wanted, -1) if wanted is not None else None
            yield _sample(item, self, f"{self.name}, sample {index}")
        if not found and self._seen:
            raise DataError(f"{self.name} gave no sample the second time: return a new iterator at every call")


def _increasing(indices: Sequence[int], name: str) -> Iterator[int]:
    order = np.asarray(indices, dtype=np.int64)
    if (np.diff(order) <= 0).any():
        raise DataError(f"{name} can only be read in order: select increasing indices, or put the samples in a list")
    return iter(order.tolist())


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping | np.ndarray)


def _sample(item: Any, dataset: Dataset, where: str) -> Sample:
    feeds, label = item if _is_pair(item) else (item, None)
    if (label is None) == dataset.labelled:
        has = "no label" if label is None else "a label"
        raise DataError(f"{where} has {has}, unlike the first: give all samples a label, or none")
    if isinstance(feeds, np.ndarray):
        feeds = {_only_input(dataset.inputs, where): feeds}
    if not isinstance(feeds, Mapping):
        raise DataError(f"{where} is a {type(feeds).__name__}: give a dictionary from input name to array")
    arrays = {str(name): np.asarray(value) for name, value in feeds.items()}
    rows = next((len(a) for a in arrays.values() if a.ndim), 1) if dataset.inputs.stacks else 1
    return Sample(feeds=arrays, label=with_row(label, rows, where), where=where)


def _only_input(inputs: ModelInputs, where: str) -> str:
    if inputs.only is None:
        names = ", ".join(inputs.names) or "which are not known here: pass the model too"
        raise DataError(f"{where} is a bare array; give a dictionary from input name to array (inputs: {names})")
    return inputs.only.name
