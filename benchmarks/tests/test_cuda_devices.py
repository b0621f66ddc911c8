"""The table of CPU and GPU, without a GPU: the runtime `native` stands in for `cuda`."""

import re

import bench_cuda_devices as bench
import numpy as np
import onnx_ir as ir
import pytest
import variants

import pumice


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    variants.write("digits_cnn", folder)
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bench", "--runtime", "native", "--seconds", "0", *map(str, arguments)])
    return bench.main()


def test_every_kind_of_a_packed_case_has_a_row_with_what_differs(packed, monkeypatch, capsys):
    assert run(monkeypatch, "--packed", packed) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "digits_cnn" in line]
    assert [row[0].strip() for row in rows] == ["digits_cnn", "digits_cnn int8", "digits_cnn mixed"]
    assert all(float(row[10]) < 1e-6 for row in rows)


def test_a_mixed_network_has_layers_of_each_format(packed):
    model = pumice.load(packed / "digits_cnn.mixed.onnx")
    kinds = {value.dtype for value in model.graph.initializers.values() if value.shape and len(value.shape) > 1}
    assert {ir.DataType.INT8, ir.DataType.UINT4, ir.DataType.FLOAT} <= kinds


def test_a_network_that_fails_is_told_of_and_the_others_are_measured(packed, tmp_path, monkeypatch, capsys):
    for path in packed.iterdir():
        broken = path.name == "digits_cnn.int8.onnx"
        (tmp_path / path.name).write_bytes(b"no model" if broken else path.read_bytes())
    assert run(monkeypatch, "--packed", tmp_path, "--json", tmp_path / "table.json") == 1
    printed = capsys.readouterr().out
    assert re.search(r"\| digits_cnn int8 .* failed \|", printed)
    assert re.search(r"\| digits_cnn mixed .* \d\.\de", printed)
    assert re.search(r"^- digits_cnn int8: \w+: ", printed, re.MULTILINE)


def feeds(**axes):
    samples = [{"x": np.full((2, 3, width), width), "h": np.full((1, 2), 7)} for width in (4, 5, 4)]
    return variants.Feeds(samples=samples, one={"x": np.zeros((1, 3, 4)), "h": np.zeros((1, 1))}, axes=axes)


def test_a_batch_repeats_samples_of_one_shape_along_each_inputs_own_axis():
    batch = feeds(x=0, h=1).batch(7)
    assert batch["x"].shape == (7, 3, 4)
    assert batch["h"].shape == (1, 7)


def test_samples_that_cannot_be_joined_are_fed_as_they_are():
    assert feeds().batch(64)["x"].shape == (2, 3, 4)


def test_feeds_are_read_as_they_were_written(tmp_path):
    made = feeds(x=0, h=1)
    made.write(tmp_path / "feeds.npz")
    read = variants.Feeds.read(tmp_path / "feeds.npz")
    assert read.axes == made.axes
    for one, other in zip([*read.samples, read.one], [*made.samples, made.one], strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in made.one)


@pytest.mark.parametrize(
    ("found", "distance"),
    [(np.float32([3, 4]), 0.25), (np.float32([2, np.nan]), np.inf), (np.float64([2, 4]), np.inf), (np.ones(1), np.inf)],
)
def test_what_differs_is_told_relative_to_the_largest_value(found, distance):
    assert bench.apart({"y": found}, {"y": np.float32([2, 4])}) == distance


def test_what_is_not_replayed_or_not_on_the_gpu_is_told():
    assert bench._exception("pumice cuda: H200 (sm_90a), NVRTC 13.0, replayed as CUDA graphs") == ""
    told = "operator by operator (a step waits); on the CPU: NonZero"
    assert bench._exception(f"pumice cuda: H200 (sm_90a), NVRTC 13.0, {told}") == told


def test_the_picture_has_a_mark_for_each_network_in_each_of_its_charts():
    measured = [
        bench.Measured(
            name=name, latency={"cpu": 1.0, "gpu": 10 / gpu}, batch=64, throughput={"cpu": 10.0, "gpu": gpu},
            dollars={"cpu": 1.0, "gpu": 1.0}, off={"cpu": 0.0, "gpu": 0.0, "ort": 0.0},
        )
        for name, gpu in (("slower", 5.0), ("faster", 500.0))
    ]  # fmt: skip
    drawing = bench.picture(measured)
    assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    marks = re.findall(r'<circle class="(\w+)".*?<title>(\w+)</title>', drawing)
    assert marks == [
        ("before", "slower"), ("after", "faster"),
        ("before", "slower"), ("after", "faster"),
        ("before", "slower"), ("before", "faster"),
    ]  # fmt: skip
