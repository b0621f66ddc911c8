"""The same model and data give the same file, alone or beside others, in threads or in processes."""

import concurrent.futures
import multiprocessing

import numpy as np
import onnx_ir as ir
import pytest

import pumice


def compressed(model_path, images_path, target):
    """The bytes of the file that a compression writes."""
    images = np.load(images_path)
    written = target.with_suffix(".onnx")
    result = pumice.compress(model_path, {"image": images}, {"step": [{"use": "quantize"}]}, measure=False)
    result.save(written)
    return written.read_bytes()


@pytest.fixture
def files(tmp_path, network, images):
    ir.save(network, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images)
    return tmp_path / "model.onnx", tmp_path / "images.npy"


def test_twenty_compressions_at_once_in_threads_write_what_one_alone_writes(files, tmp_path):
    alone = compressed(*files, tmp_path / "alone")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        jobs = [pool.submit(compressed, *files, tmp_path / f"thread{n}") for n in range(20)]
    assert all(job.result() == alone for job in jobs)


def test_twenty_compressions_in_processes_write_what_one_alone_writes(files, tmp_path):
    alone = compressed(*files, tmp_path / "alone")
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=spawned) as pool:
        jobs = [pool.submit(compressed, *files, tmp_path / f"process{n}") for n in range(20)]
        assert all(job.result() == alone for job in jobs)
