"""Bad input, end to end through the command line, and input that only looks bad.

Each refusal is one sentence on standard error with exit code 2, and leaves nothing behind. Models are tiny and data is
random: what is tested is not accuracy.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from pumice.testing.models import serialized, tiny_cnn

PUMICE = str(Path(sys.executable).with_name("pumice"))
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


# --- a model and data that are good, and how they are spoilt ----------------------------------------------------------


@attrs.define
class Case:
    """A folder with `model.onnx` and `data.npz`, and the arguments of `pumice compress`."""

    folder: Path
    arguments: list[str] = attrs.field(factory=list)

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def output(self) -> Path:
        return self.folder / "out.onnx"

    def text_model(self, text: str, header: str = HEADER, **weights: np.ndarray) -> onnx.ModelProto:
        """Write a model given as ONNX text."""
        proto = parser.parse_model(header + text)
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        self.model.write_bytes(proto.SerializeToString())
        return proto

    def edit(self, change) -> None:
        proto = onnx.load(self.model)
        change(proto)
        self.model.write_bytes(proto.SerializeToString())

    def feed(self, **arrays: np.ndarray) -> None:
        np.savez(self.data, **arrays)

    def compress(self, *more: object) -> list[str]:
        return [
            *("compress", str(self.model), "--data", str(self.data), "-o", str(self.output), "--no-measure"),
            *map(str, more),
            *self.arguments,
        ]

    def contents(self) -> dict[str, int]:
        return {str(p.relative_to(self.folder)): p.stat().st_size for p in self.folder.rglob("*")}


@pytest.fixture
def case(tmp_path):
    made = Case(tmp_path)
    made.model.write_bytes(serialized(tiny_cnn()))
    made.feed(x=samples(), labels=np.arange(24) % 5)
    return made


def samples(count=24, shape=(3, 8, 8), seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


SPOILERS = {}


def refused(*sentence: str):
    """Register a way to spoil the case, with what the refusal must say (regular expressions)."""

    def register(spoil):
        SPOILERS[spoil.__name__] = pytest.param(spoil, sentence, id=spoil.__name__)
        return spoil

    return register


@pytest.mark.parametrize(("spoil", "sentence"), SPOILERS.values() if SPOILERS else [])
def test_placeholder(spoil, sentence):
    """Replaced below, when the table is full."""


# --- the file ---------------------------------------------------------------------------------------------------------


@refused(r"model\.onnx", "does not exist|no such")
def a_missing_file(case):
    case.model.unlink()


@refused(r"model\.onnx", "folder|directory")
def a_folder_for_a_model(case):
    case.model.unlink()
    case.model.mkdir()


@refused(r"model\.onnx", "empty")
def an_empty_file(case):
    case.model.write_bytes(b"")


@refused(r"model\.onnx", "not .*ONNX|damaged|truncated")
def a_truncated_file(case):
    case.model.write_bytes(case.model.read_bytes()[:-700])


@refused(r"model\.onnx", "not .*ONNX")
def a_file_that_is_not_onnx(case):
    case.model.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)


@refused(r"model\.onnx", "not .*ONNX")
def a_text_file(case):
    case.model.write_text("dear sir or madam\n" * 40)


# --- the graph --------------------------------------------------------------------------------------------------------


@refused("Frobnicate")
def an_unknown_operator(case):
    case.edit(lambda proto: setattr(proto.graph.node[1], "op_type", "Frobnicate"))


@refused("acme", "Relu")
def an_unknown_domain(case):
    def change(proto):
        proto.graph.node[1].domain = "acme.ops"
        proto.opset_import.add(domain="acme.ops", version=1)

    case.edit(change)


@refused("NaN|not finite", "w1")
def nan_in_the_weights(case):
    def change(proto):
        weight = next(t for t in proto.graph.initializer if t.name == "w1")
        array = numpy_helper.to_array(weight).copy()
        array.flat[5] = np.nan
        weight.CopyFrom(numpy_helper.from_array(array, "w1"))

    case.edit(change)


@refused("missing_value")
def a_value_that_nothing_computes(case):
    case.edit(lambda proto: proto.graph.node[1].input.__setitem__(0, "missing_value"))


@refused("changed nothing|nothing to")
def a_model_without_anything_to_quantize(case):
    case.text_model("g (float[N,4] x) => (float[N,4] y) { h = Relu (x) y = Abs (h) }")
    case.feed(x=samples(shape=(4,)))


@refused("quantized already|already quantized")
def a_model_that_is_quantized_already(case):
    case.text_model(
        "g (float[N,4] x) => (float[N,4] y) {"
        " q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) w = DequantizeLinear (wq, s, zw) y = MatMul (d, w) }",
        s=np.float32(0.05),
        z=np.uint8(128),
        zw=np.int8(0),
        wq=np.ones((4, 4), np.int8),
    )
    case.feed(x=samples(shape=(4,)))


@refused("outside", "weights.bin")
def external_data_outside_the_folder(case):
    inner = case.folder / "inner"
    inner.mkdir()
    (case.folder / "weights.bin").write_bytes(np.ones((4, 4), np.float32).tobytes())
    proto = case.text_model("g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((4, 4), np.float32))
    external(proto.graph.initializer[0], "../weights.bin", 64)
    case.model.unlink()
    (inner / "model.onnx").write_bytes(proto.SerializeToString())
    case.arguments = []
    case.folder = inner
    case.feed(x=samples(shape=(4,)))


@refused("weights.bin")
def external_data_that_is_missing(case):
    proto = case.text_model("g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((4, 4), np.float32))
    external(proto.graph.initializer[0], "weights.bin", 64)
    case.model.write_bytes(proto.SerializeToString())
    case.feed(x=samples(shape=(4,)))


def external(tensor, location, length):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


@refused("w")
def a_weight_with_too_few_bytes(case):
    proto = case.text_model("g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((4, 4), np.float32))
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-8]
    case.model.write_bytes(proto.SerializeToString())
    case.feed(x=samples(shape=(4,)))


@refused("memory|too large|bytes|TB|GB")
def a_shape_that_would_take_a_terabyte(case):
    shape = np.array([512, 1024, 1024, 512], np.int64)
    case.text_model(
        "g (float[N,4] x) => (float[N,4] y) {"
        " m = MatMul (x, w) big = ConstantOfShape (shape) total = ReduceSum <keepdims=0> (big) y = Add (m, total) }",
        w=np.ones((4, 4), np.float32),
        shape=shape,
    )
    case.feed(x=samples(shape=(4,)))


@refused("w", "zero|empty|0")
def a_weight_of_no_elements(case):
    case.text_model("g (float[N,0] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((0, 4), np.float32))
    case.feed(x=samples(shape=(0,)))


# --- the data ---------------------------------------------------------------------------------------------------------


@refused("data", "does not exist|no such|there is no")
def data_that_does_not_exist(case):
    case.data.unlink()


@refused("empty|no samples")
def data_without_samples(case):
    case.feed(x=samples(0), labels=np.zeros(0, np.int64))


@refused("NaN|not finite", "x")
def nan_in_the_data(case):
    array = samples()
    array[7, 1, 2, 3] = np.nan
    case.feed(x=array, labels=np.arange(24) % 5)


@refused("x", r"\[.*3, 8, 8\]", "shape")
def data_of_the_wrong_shape(case):
    case.feed(x=samples(shape=(3, 9, 8)), labels=np.arange(24) % 5)


@refused("x", "int16|type")
def data_of_the_wrong_type(case):
    case.feed(x=samples().astype(np.int16), labels=np.arange(24) % 5)


@refused("'x'", "image")
def data_for_another_input(case):
    case.feed(image=samples(), labels=np.arange(24) % 5)


@refused("labels|samples", "24", "23")
def labels_of_another_length(case):
    case.feed(x=samples(), labels=np.arange(23) % 5)


@refused("damaged|not .*npz|cannot read")
def damaged_data(case):
    case.data.write_bytes(case.data.read_bytes()[:300])


@refused("pickle|object")
def data_that_hides_a_program(case):
    case.feed(x=np.array([{"a": 1}] * 3, dtype=object))


@refused("needs calibration data")
def no_data_at_all(case):
    case.compress = lambda *more: ["compress", str(case.model), "-o", str(case.output), *map(str, more)]


@refused("too few|at least|give more")
def a_single_sample(case):
    case.feed(x=samples(1), labels=np.zeros(1, np.int64))


# --- the command line -------------------------------------------------------------------------------------------------


@refused("--calibrater", "--calibrator")
def an_unknown_flag(case):
    case.arguments = ["--calibrater", "entropy"]


@refused("calibrator", "entropy")
def a_misspelt_choice(case):
    case.arguments = ["--calibrator", "entropi"]


@refused("max_drop", "0 to 1")
def a_knob_out_of_range(case):
    case.arguments = ["--max-drop", "1.5"]


@refused("quantizer", "int8")
def an_unknown_quantizer(case):
    case.arguments = ["--quantizer", "int9"]


@refused("exporter", "qdq")
def an_unknown_exporter(case):
    case.arguments = ["--exporter", "qdx"]


@refused("runtime", "known|did you mean")
def an_unknown_runtime(case):
    case.arguments = ["--runtime", "orx"]


@refused("metric", "top1")
def an_unknown_metric(case):
    case.arguments = ["--metric", "top11"]


@refused("needs labels")
def a_metric_that_needs_labels(case):
    case.feed(x=samples())
    case.arguments = ["--metric", "top1"]


@refused("recipe", "step 1", "max_drop")
def a_recipe_with_an_unknown_knob(case):
    recipe = case.folder / "r.toml"
    recipe.write_text('[[step]]\nuse = "quantize"\nmax_drp = 0.1\n')
    case.arguments = ["--recipe", str(recipe)]


@refused("recipe", "TOML")
def a_recipe_that_is_not_toml(case):
    recipe = case.folder / "r.toml"
    recipe.write_text("use: quantize\n")
    case.arguments = ["--recipe", str(recipe)]


@refused("all|nothing", "exclude")
def excluding_every_node(case):
    case.arguments = ["--exclude", "*"]


# --- the output -------------------------------------------------------------------------------------------------------


@refused("cannot write", "no folder")
def an_output_folder_that_does_not_exist(case):
    case.arguments = ["-o", str(case.folder / "no" / "such" / "out.onnx")]


@refused("cannot write", "folder")
def an_output_that_is_a_folder(case):
    (case.folder / "there").mkdir()
    case.arguments = ["-o", str(case.folder / "there")]


@refused("cannot write")
def an_output_that_cannot_be_written(case):
    case.arguments = ["-o", "/proc/out.onnx"]


@refused("cannot write", "not an ordinary file")
def an_output_that_is_a_device(case):
    case.arguments = ["-o", "/dev/null"]


@refused("the model itself")
def an_output_that_is_the_input(case):
    case.arguments = ["-o", str(case.model)]


@refused("cannot write", "report|page")
def a_report_in_a_folder_that_does_not_exist(case):
    case.arguments = ["--report", str(case.folder / "nowhere" / "page.html")]
