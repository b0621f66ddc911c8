"""The table of CPU and GPU, without a GPU."""

import re

import bench_cuda_devices as bench

import pumice


def test_samples_are_drawn_for_every_trained_network():
    for path in bench.TRAINED.glob("*.onnx"):
        model = pumice.load(path)
        feed = bench.drawn(model, 3)
        assert feed.keys() == {value.name for value in model.graph.inputs}
        assert all(len(array) == 3 for array in feed.values())


def test_the_picture_has_a_mark_for_each_network_in_each_of_its_charts():
    measured = [
        bench.Measured(
            name=name, latency={"cpu": 1.0, "gpu": 10 / gpu}, throughput={"cpu": 10.0, "gpu": gpu},
            dollars={"cpu": 1.0, "gpu": 1.0}, differs=0.0,
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
