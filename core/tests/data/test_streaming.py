"""100,000 samples are streamed in a few megabytes, whatever they come from."""

import gc

import numpy as np
import psutil
import pytest

from pumice.data import open_dataset, open_splits

SAMPLES = 100_000
ITEMS = 256  # 1 kB a sample: 100 MB in all
ALLOWED = 12_000_000


def grown_by(read) -> int:
    """Bytes that the process grew by at the most, while every 2,000th batch was looked at."""
    process = psutil.Process()
    gc.collect()
    before = peak = process.memory_info().rss
    for index, _ in enumerate(read):
        if index % 500 == 0:
            peak = max(peak, process.memory_info().rss)
    return max(peak, process.memory_info().rss) - before


def write(path, save):
    """Rows of noise, written through a map so that this process does not hold them either."""
    rows = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float32, (SAMPLES, ITEMS))
    block = np.random.default_rng(0).standard_normal((1000, ITEMS)).astype(np.float32)
    for start in range(0, SAMPLES, 1000):
        rows[start : start + 1000] = block
    rows.flush()
    save(path, x=rows, labels=np.arange(SAMPLES) % 7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_larger_than_the_memory_allowed_is_streamed(tmp_path, model_of, save):
    path = tmp_path / "data.npz"
    write(path, save)
    gc.collect()
    splits = open_splits(path, model_of(f"float[N,{ITEMS}] x"))
    assert len(splits.calibration) + len(splits.test) == SAMPLES
    assert grown_by(splits.test.batches(64)) < ALLOWED


def test_a_generator_is_streamed(model_of):
    def feeds():
        for i in range(SAMPLES):
            yield {"x": np.full((1, ITEMS), i, np.float32)}, i % 7

    dataset = open_dataset(feeds, model_of(f"float[N,{ITEMS}] x"))
    assert grown_by(dataset.batches(64)) < ALLOWED
