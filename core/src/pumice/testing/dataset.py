"""What a reader of data owes: it knows its own, and gives the same samples, whole and in order, every time."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.data import Dataset
from pumice.strategy import DatasetReader
from pumice.testing.models import tiny_cnn
from pumice.testing.strategy import StrategyContract

SAMPLES = 5


class DatasetReaderContract(StrategyContract[DatasetReader]):
    """Give `write`: how the samples look on disk in the form that the reader reads."""

    def write(self, folder: Path, feeds: NDArray[Any], labels: NDArray[np.int64]) -> Path:
        """Write samples of input `x`, labelled, into an empty folder; return the path that `--data` would be given."""
        raise NotImplementedError

    def feeds(self) -> NDArray[Any]:
        """What the samples feed: an array for input `x` of `model`, the samples first."""
        return np.random.default_rng(2).standard_normal((SAMPLES, 3, 8, 8)).astype(np.float32)

    def labels(self) -> NDArray[np.int64]:
        """A class for every sample."""
        return np.array([3, 0, 4, 1, 1])

    def model(self) -> ir.Model:
        """The model to be fed."""
        return tiny_cnn()

    @contextmanager
    def written(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield self.write(Path(folder), self.feeds(), self.labels())

    @contextmanager
    def opened(self) -> Iterator[Dataset]:
        with self.written() as path:
            yield self.make().open(path, self.model())

    def test_it_recognises_its_own_and_nothing_else(self) -> None:
        with self.written() as path:
            assert self.make().recognises(path) is True
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "notes.md").write_text("no data here\n")
            for other in (Path(folder), Path(folder, "notes.md"), Path(folder, "nothing here")):
                assert self.make().recognises(other) is False, f"it took {other.name!r} for data"

    def test_every_sample_is_read_whole_and_in_order(self) -> None:
        with self.opened() as dataset:
            read = list(dataset.samples())
        assert len(read) == SAMPLES
        for sample, expected, label in zip(read, self.feeds(), self.labels(), strict=True):
            np.testing.assert_array_equal(np.squeeze(sample.feeds["x"]), np.squeeze(expected))
            assert np.ravel(sample.label) == [label]
            assert sample.where, "a sample names its place, for errors"

    def test_it_tells_its_length_and_that_it_has_labels(self) -> None:
        with self.opened() as dataset:
            assert (dataset.count(), dataset.labelled) == (SAMPLES, True)

    def test_it_can_be_read_again(self) -> None:
        with self.opened() as dataset:
            one, other = (np.concatenate([b.feeds["x"] for b in dataset.batches(2)]) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    def test_samples_can_be_picked_in_any_order(self) -> None:
        with self.opened() as dataset:
            read = list(dataset.samples())
            picked = list(dataset.select([4, 0]).samples())
        for sample, index in zip(picked, (4, 0), strict=True):
            np.testing.assert_array_equal(sample.feeds["x"], read[index].feeds["x"])

    def test_the_same_data_has_the_same_fingerprint(self) -> None:
        with self.written() as path:
            one, other = (self.make().open(path, self.model()).fingerprint() for _ in range(2))
        assert one == other
