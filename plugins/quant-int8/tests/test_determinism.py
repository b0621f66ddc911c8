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
EACH = COMPRESS + "[compress(sys.argv[1], sys.argv[2], target) for target in sys.argv[3:]]"


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


def test_twenty_compressions_in_processes_write_what_one_alone_writes(files, tmp_path, compress):
    targets = [tmp_path / f"{n}.onnx" for n in range(20)]
    compress(*files, tmp_path / "alone.onnx")
    commands = [[sys.executable, "-c", EACH, *map(str, (*files, *targets[n::4]))] for n in range(4)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert {target.read_bytes() for target in targets} == {(tmp_path / "alone.onnx").read_bytes()}
