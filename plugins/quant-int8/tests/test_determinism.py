"""The same model and data give the same file, alone or beside others, in threads or in processes."""

import concurrent.futures
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

COMPRESS = """
import sys
import numpy as np
import pumice

def compress(model, images, target):
    data = {"image": np.load(images)}
    result = pumice.compress(model, data, {"step": [{"use": "quantize"}]}, measure=False)
    result.save(target)
"""
ALL = """
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor() as pool:
    list(pool.map(lambda target: compress(*sys.argv[1:3], target), sys.argv[3:]))
"""


@pytest.fixture
def files(tmp_path, network, images):
    ir.save(network, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images)
    return tmp_path / "model.onnx", tmp_path / "images.npy"


@pytest.fixture
def compress():
    scope = {}
    exec(COMPRESS, scope)
    return scope["compress"]


def test_twenty_compressions_at_once_in_threads_write_what_one_alone_writes(files, tmp_path, compress):
    targets = [tmp_path / f"{n}.onnx" for n in range(20)]
    compress(*files, tmp_path / "alone.onnx")
    with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
        list(pool.map(lambda target: compress(*files, target), targets))
    assert {target.read_bytes() for target in targets} == {(tmp_path / "alone.onnx").read_bytes()}


def test_two_runs_write_the_same_bytes(files, tmp_path, compress):
    targets = [tmp_path / name for name in ("one.onnx", "other.onnx")]
    for target in targets:
        compress(*files, target)
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_twenty_compressions_at_once_in_four_processes_write_what_one_alone_writes(files, tmp_path, compress):
    targets = [tmp_path / f"{n}.onnx" for n in range(20)]
    compress(*files, tmp_path / "alone.onnx")
    commands = [[sys.executable, "-c", COMPRESS + ALL, *map(str, (*files, *targets[n::4]))] for n in range(4)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert {target.read_bytes() for target in targets} == {(tmp_path / "alone.onnx").read_bytes()}
