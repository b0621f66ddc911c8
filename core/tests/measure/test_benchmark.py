"""A model on several runtimes: every setting has a line, and one that refuses has its reason."""

import attrs
import pytest

from pumice.errors import ModelError
from pumice.measure.benchmark import benchmark
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.model import save
from pumice.report.bars import bars
from pumice.strategy import Runtime
from pumice.testing.models import tiny_cnn


@attrs.frozen(kw_only=True)
class Refusing(Runtime):
    """Takes no model."""

    name = "refusing"

    def open(self, model, *, outputs=None, threads=None):
        raise ModelError("it takes no model; choose another")


@attrs.frozen(kw_only=True)
class Telling(ReferenceRuntime):
    """Says where its time goes."""

    name = "telling"

    def profile(self, model, feeds, *, threads=None):
        return [(f"node{i}", "Conv", float(i)) for i in range(20)]


@pytest.fixture
def path(tmp_path):
    save(tiny_cnn(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_every_setting_has_a_line(path):
    lines, notes = benchmark(path, [ReferenceRuntime()], threads=(1, 2), batches=(1, 2), seconds=0.05, memory=False)
    assert [(line.threads, line.batch) for line in lines] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert all(line.latency is not None and line.latency.median > 0 for line in lines)
    assert "random input" in notes[0]


def test_a_runtime_that_refuses_the_model_costs_the_others_nothing(path):
    refused, measured = benchmark(path, [Refusing(), ReferenceRuntime()], seconds=0.05, memory=False)[0]
    assert refused.latency is None
    assert "choose another" in refused.failure
    assert measured.latency is not None


def test_the_ten_slowest_nodes_are_told_with_their_share(path):
    (line,), _ = benchmark(path, [Telling()], seconds=0.05, memory=False)
    assert [layer.node for layer in line.layers] == [f"node{i}" for i in range(19, 9, -1)]
    assert line.layers[0].share == pytest.approx(19 / sum(range(20)))
    assert line.to_json()["layers"][0]["op"] == "Conv"


def test_the_picture_names_every_setting():
    drawn = bars("latency <&>", [("one", "a", 1.0, 2.0, 3.0), ("two", "b", 1.0, 1.5, 2.0)])
    assert drawn.startswith("<svg")
    assert all(text in drawn for text in ("one", "two", "2 ms", "1.5 ms", "&lt;&amp;&gt;"))
