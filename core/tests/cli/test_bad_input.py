# over 500 lines: the whole table of bad input stands in one place, so that a missing case is seen
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
import zipfile
from pathlib import Path

import attrs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser
from PIL import Image

from pumice.testing.models import serialized, tiny_cnn

PUMICE = str(Path(sys.executable).with_name("pumice"))
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


# --- a model and data that are good, and how they are spoilt ----------------------------------------------------------


@attrs.define
class Case:
    """A folder with `model.onnx` and `data.npz`, and the arguments of `pumice compress`."""

    folder: Path
    arguments: list[str] = attrs.field(factory=list)
    with_data: bool = True

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
        data = ["--data", str(self.data)] if self.with_data else []
        fixed = ["compress", str(self.model), *data, "-o", str(self.output), "--no-measure"]
        return [*fixed, *map(str, more), *self.arguments]

    def contents(self) -> dict[str, int]:
        return {str(p.relative_to(self.folder)): p.lstat().st_size for p in self.folder.rglob("*")}


@pytest.fixture
def case(tmp_path):
    made = Case(tmp_path)
    made.model.write_bytes(serialized(tiny_cnn()))
    made.feed(x=samples(), labels=np.arange(24) % 5)
    return made


def samples(count=24, shape=(3, 8, 8), seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


REFUSED, ACCEPTED = [], []


def refused(*sentence: str):
    """Register a way to spoil the case, with what the refusal must say (regular expressions)."""

    def register(spoil):
        REFUSED.append(pytest.param(spoil, sentence, id=spoil.__name__))
        return spoil

    return register


def accepted(change):
    """Register a change that looks bad and is legal."""
    ACCEPTED.append(pytest.param(change, id=change.__name__))
    return change


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


@refused("pipe or a device")
def a_model_that_is_a_pipe(case):
    case.model.unlink()
    os.mkfifo(case.model)


@refused("cannot be read")
def a_link_that_leads_to_itself(case):
    case.model.unlink()
    case.model.symlink_to(case.model)


@refused("cannot use", "too long")
def a_name_that_no_file_can_have(case):
    case.arguments = ["--data", "d" * 5000]


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
        " q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
        " w = DequantizeLinear (wq, s, zw) y = MatMul (d, w) }",
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


@refused("w.bin", "not an ordinary file")
def external_data_that_is_a_pipe(case):
    proto = onnx.load(case.model)
    external(proto.graph.initializer[0], "w.bin", len(proto.graph.initializer[0].raw_data))
    os.mkfifo(case.folder / "w.bin")
    case.model.write_bytes(proto.SerializeToString())


@refused("w1", "offset", "-4")
def external_data_at_an_impossible_place(case):
    proto = onnx.load(case.model)
    external(proto.graph.initializer[0], "w.bin", len(proto.graph.initializer[0].raw_data))
    next(e for e in proto.graph.initializer[0].external_data if e.key == "offset").value = "-4"
    case.model.write_bytes(proto.SerializeToString())


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


@refused("memory")
def a_range_that_would_take_a_terabyte(case):
    case.text_model(
        "g (float[N,4] x) => (float[N,4] y) {"
        " m = MatMul (x, w) many = Range (zero, limit, one) real = Cast <to=1> (many)"
        " total = ReduceSum <keepdims=0> (real) y = Add (m, total) }",
        w=np.ones((4, 4), np.float32),
        zero=np.int64(0),
        limit=np.int64(2**45),
        one=np.int64(1),
    )
    case.feed(x=samples(shape=(4,)))


@refused("same node name", "name of its own")
def two_nodes_of_one_name(case):
    case.edit(lambda proto: [setattr(node, "name", "same") for node in proto.graph.node])


@refused("'x' is empty", r"\[1, 0\]")
def a_dimension_of_zero(case):
    case.text_model("g (float[N,0] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((0, 4), np.float32))
    case.feed(x=samples(shape=(0,)))


@refused("changed nothing", "only float32 is quantized")
def a_float64_model(case):
    case.text_model(
        "g (double[N,64] x) => (double[N,8] y) { y = MatMul (x, w) }", w=samples(64, (8,)).astype(np.float64)
    )
    case.feed(x=samples(24, (64,)).astype(np.float64))


@refused("changed nothing", "only float32 is quantized")
def a_float16_model(case):
    case.text_model(
        "g (float16[N,64] x) => (float16[N,8] y) { y = MatMul (x, w) }", w=samples(64, (8,)).astype(np.float16)
    )
    case.feed(x=samples(24, (64,)).astype(np.float16))


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


@refused("cannot be read")
def damaged_data(case):
    case.data.write_bytes(case.data.read_bytes()[:300])


@refused("'x'", "shorter than its header says", str(4 * 3 * 8 * 8 << 40))
def data_whose_header_promises_a_petabyte(case):
    stored_with_header(case.data, shape=(1 << 40, 3, 8, 8))


@refused("'x'", "impossible shape")
def data_of_a_negative_shape(case):
    stored_with_header(case.data, shape=(-24, 3, 8, 8))


def stored_with_header(path, shape):
    """An .npz with an array `x` of 1000 bytes that claims this shape."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(1000)
        )


@refused("pickle|object")
def data_that_hides_a_program(case):
    case.feed(x=np.array([{"a": 1}] * 3, dtype=object))


def declared(declaration: str, *sentence: str):
    """Register a `pumice.toml` beside images that is refused."""

    def spoil(case):
        images(case, declaration)

    spoil.__name__ = f"declared {declaration!r}"
    return refused("pumice.toml", *sentence)(spoil)


def images(case, declaration: str = "") -> None:
    """A folder of images in two classes takes the place of the data."""
    case.data.unlink()
    for name in ("cat", "dog"):
        (case.data / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(case.data / name / f"{number}.png")
    (case.data / "pumice.toml").write_text(declaration)


declared("inputs = 3", "table")
declared("[inputs]\nx = 3", "'x'", "table")
declared('tokenizer = "t.json"', "table")
declared("[inputs.x]\nresise = 8", "'resise'", "resize")
declared("[inputs.image]\nresize = 8", "no input 'image'")
declared("[inputs.x]\nresize = '8'", "'8' is not a size", r"inputs\.x\.resize")
declared("[inputs.x]\nresize = 1000000000", "is not a size")
declared("[inputs.x]\nresize = true", "True is not a size")
declared("[inputs.x]\nscale = nan", "nan is not a finite number")
declared("[inputs.x]\nmean = [1, 2, 3, 4]", "`mean`", "one a channel")
declared("[inputs.x]\nstd = 0", "`std`")
declared("[inputs.x]\ndtype = 'float31'", "float31")
declared("[inputs.x]\nlayout = 'CHW'", "'CHW' is none of NCHW, NHWC")
declared("[inputs.x]\nconstant = { a = 1 }", "constant", "'x'")
declared("classes = 'cat'", "'cat' is not a list of texts")
declared("classes = ['cat']", "no class 'dog'")
declared("label = 3", "3 is not a text")
declared("[tokenizer]\nfile = 't.json'\nmax_length = -1", "-1 is not a whole number")
declared("[tokenizer]\nfile = 't.json'\npad = 'no'", "'no' is neither true nor false")
declared("deep = " + "[" * 5000 + "]" * 5000, "nested too deeply")


@refused("needs calibration data")
def no_data_at_all(case):
    case.with_data = False


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


@refused("recipe", "nested too deeply")
def a_recipe_that_never_ends(case):
    recipe = case.folder / "r.toml"
    recipe.write_text("step = " + "[" * 5000)
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


@refused("the data itself")
def an_output_that_is_the_data(case):
    case.arguments = ["-o", str(case.data)]


@refused("the recipe itself")
def an_output_that_is_the_recipe(case):
    recipe = case.folder / "r.toml"
    recipe.write_text('[[step]]\nuse = "quantize"\n')
    case.arguments = ["--recipe", str(recipe), "-o", str(recipe)]


@refused("the model and the account", "page.json")
def an_output_that_is_the_account_of_the_report(case):
    case.arguments = ["--report", str(case.folder / "page.html"), "-o", str(case.folder / "page.json")]


@refused("cannot write", "page.json", "folder")
def an_account_that_cannot_be_written_beside_the_report(case):
    (case.folder / "page.json").mkdir()
    case.arguments = ["--report", str(case.folder / "page.html")]


@refused("cannot write", "no folder")
def an_output_that_links_to_nowhere(case):
    case.output.symlink_to(case.folder / "nowhere" / "out.onnx")


@refused("cannot write", "no folder")
def a_log_in_a_folder_that_does_not_exist(case):
    case.arguments = ["--log", str(case.folder / "nowhere" / "log")]


@refused("no text file")
def a_log_that_is_the_model(case):
    case.arguments = ["--log", str(case.model)]


@refused("the model and the log")
def a_log_that_is_the_output(case):
    case.arguments = ["--log", str(case.output)]


# --- what only looks bad ----------------------------------------------------------------------------------------------


@accepted
def a_fixed_batch(case):
    case.text_model("g (float[1,64] x) => (float[1,8] y) { y = MatMul (x, w) }", w=samples(64, (8,)))
    case.feed(x=samples(24, (64,)))


@accepted
def a_dynamic_batch_without_a_name(case):
    def change(proto):
        proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()

    case.edit(change)


@accepted
def names_with_spaces_slashes_and_quotes(case):
    def change(proto):
        for number, node in enumerate(proto.graph.node):
            node.name = f'my model/block {number}/it\'s "{node.op_type}" <b>&amp;'
            for index, name in enumerate(node.input):
                node.input[index] = f"value {name}/0" if name.islower() and name != "x" else name
            for index, name in enumerate(node.output):
                node.output[index] = f"value {name}/0" if name != "logits" else name
        for tensor in proto.graph.initializer:
            tensor.name = f"value {tensor.name}/0"
        proto.graph.ClearField("value_info")

    case.edit(change)


@accepted
def nodes_without_names(case):
    case.edit(lambda proto: [setattr(node, "name", "") for node in proto.graph.node])


@accepted
def data_in_float64(case):
    case.feed(x=samples().astype(np.float64), labels=np.arange(24) % 5)


@accepted
def data_without_labels(case):
    case.feed(x=samples())


@accepted
def a_single_sample(case):
    case.feed(x=samples(1), labels=np.zeros(1, np.int64))


@accepted
def a_folder_with_spaces(case):
    folder = case.folder / "my models, été"
    folder.mkdir()
    for path in (case.model, case.data):
        path.rename(folder / path.name)
    case.folder = folder


@accepted
def weights_that_are_external(case):
    proto = onnx.load(case.model)
    onnx.save(proto, case.model, save_as_external_data=True, location="weights.bin", size_threshold=0)


@accepted
def a_cache_of_links_to_files_with_other_names(case):
    stored, shown = case.folder / "blobs", case.folder / "snapshot"
    stored.mkdir()
    shown.mkdir()
    onnx.save(onnx.load(case.model), case.model, save_as_external_data=True, location="w.bin", size_threshold=0)
    for name in ("model.onnx", "w.bin"):
        (case.folder / name).rename(stored / f"hash of {name}")
        (shown / name).symlink_to(stored / f"hash of {name}")
    case.data.rename(shown / case.data.name)
    case.folder = shown


@accepted
def an_old_opset(case):
    case.text_model(
        "g (float[N,64] x) => (float[N,8] y) { y = MatMul (x, w) }",
        header='<ir_version: 4, opset_import: ["" : 9]>',
        w=samples(64, (8,)),
    )
    case.feed(x=samples(24, (64,)))


@accepted
def one_number_for_an_answer(case):
    case.text_model("g (float[N,64] x) => (float[N,1] y) { y = MatMul (x, w) }", w=samples(64, (1,)))
    case.feed(x=samples(24, (64,)))


@accepted
def a_sequence_among_the_outputs(case):
    case.text_model(
        "g (float[N,64] x) => (float[N,8] y, seq(float[N,8]) s) { y = MatMul (x, w) s = SequenceConstruct (y, y) }",
        w=samples(64, (8,)),
    )
    case.feed(x=samples(24, (64,)))


@accepted
def an_output_without_items(case):
    case.text_model(
        "g (float[N,64] x) => (float[N,8] y, float[N,0] z) { y = MatMul (x, w) z = MatMul (x, e) }",
        w=samples(64, (8,)),
        e=np.zeros((64, 0), np.float32),
    )
    case.feed(x=samples(24, (64,)))


@accepted
def data_in_the_byte_order_of_other_machines(case):
    case.feed(x=samples().astype(">f4"), labels=np.arange(24) % 5)


@accepted
def labels_that_fit_nothing(case):
    case.feed(x=samples(), labels=np.full(24, 0.5))


@accepted
def a_recipe_with_a_byte_order_mark(case):
    recipe = case.folder / "r.toml"
    recipe.write_text('\ufeff[[step]]\nuse = "quantize"\n', encoding="utf-8")
    case.arguments = ["--recipe", str(recipe)]


@accepted
def what_a_system_hides_beside_the_data(case):
    folder = case.folder / "feeds"
    folder.mkdir()
    np.savez(folder / "0.npz", x=samples(1))
    (folder / "._0.npz").write_bytes(b"\0\5\x16\7")
    case.arguments = ["--data", str(folder)]


@accepted
def a_runtime_that_fuses_what_is_looked_at(case):
    case.arguments = ["--runtime", "simulated"]


@accepted
def an_output_that_exists(case):
    case.output.write_bytes(b"old")


# --- the tests --------------------------------------------------------------------------------------------------------


def sentence_of(stderr: str) -> str:
    """The last line; before it only progress and notes."""
    return stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED)
def test_is_refused_in_one_sentence_with_code_2_and_nothing_left(case, run, spoil, sentence):
    spoil(case)
    before = case.contents()
    done = run(*case.compress())
    assert done.exit_code == 2, done.stderr
    said = sentence_of(done.stderr)
    assert said.startswith("pumice: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for pattern in sentence:
        assert re.search(pattern, said, re.IGNORECASE), said
    assert case.contents() == before


@pytest.mark.parametrize("change", ACCEPTED)
def test_is_legal_and_works(case, run, change):
    change(case)
    done = run(*case.compress("--report", case.folder / "page.html"))
    assert done.exit_code == 0, done.stderr
    onnx.checker.check_model(case.output, full_check=True)
    assert (case.folder / "page.html").stat().st_size > 10_000


def test_old_output_is_replaced_whole_and_json_is_alone_on_standard_output(case, run):
    case.output.write_bytes(b"old")
    done = run(*case.compress("--json"))
    account = json.loads(done.stdout)
    assert account["files"] == [str(case.output)]
    assert account["headline"].startswith(("1.", "2.", "Of the same size"))
    onnx.load(case.output)


def test_quiet_says_nothing(case, run):
    done = run(*case.compress("--quiet"))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_the_log_holds_the_account_with_times(case, run):
    log = case.folder / "run.log"
    run(*case.compress("--quiet", "--log", log))
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ledger: ", log.read_text(), re.MULTILINE)


def test_the_same_command_gives_the_same_bytes(case, run):
    run(*case.compress())
    first = case.output.read_bytes()
    run(*case.compress("-o", case.folder / "again.onnx"))
    assert (case.folder / "again.onnx").read_bytes() == first


@pytest.fixture
def full_disk(tmp_path):
    """A folder with room for 4 kB: a file system of its own for root, else None."""
    if os.geteuid() != 0:
        yield None
        return
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(case, full_disk):
    """Where no file system can be made, a limit on the size of files plays the full disk."""
    target = (full_disk or case.folder) / "out.onnx"
    limit = None if full_disk else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    done = subprocess.run(
        [PUMICE, *case.compress("-o", target)], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 2, done.stderr
    assert sentence_of(done.stderr).startswith("pumice: ")
    assert "no space left" in done.stderr.lower() or "too large" in done.stderr.lower()
    assert list(target.parent.glob("*out*")) == []


KILLER = """
import os, signal
from pathlib import Path
from pumice import hookimpl

if os.environ["KILL_AT"] == "rename":
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = os.rename = die
    Path.replace = Path.rename = die

@hookimpl
def pumice_step_finished():
    if os.environ["KILL_AT"] == "step":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["step", "rename"])
def test_a_killed_run_leaves_the_old_file_whole_and_the_next_one_works(case, moment):
    site = case.folder / "site"
    info = site / "killer-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "killer_plugin.py").write_text(KILLER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: killer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pumice]\nkiller = killer_plugin\n")
    case.output.write_bytes(b"the old model")
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "KILL_AT": moment}
    done = subprocess.run([PUMICE, *case.compress()], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert case.output.read_bytes() == b"the old model"
    again = subprocess.run([PUMICE, *case.compress()], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    onnx.load(case.output)


def test_an_interrupted_run_says_so_and_leaves_the_old_file_whole(case):
    case.output.write_bytes(b"the old model")
    case.feed(x=samples(60000), labels=np.arange(60000) % 5)  # long enough to be caught in the middle
    log = case.folder / "run.log"
    process = subprocess.Popen(
        [PUMICE, *case.compress("--samples", "100000", "--log", log)], stderr=subprocess.PIPE, text=True
    )
    while not log.exists() and process.poll() is None:  # the first line about progress
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert sentence_of(said) == "pumice: interrupted; nothing was left half written"
    left = (
        case.output.read_bytes()
    )  # whole in any case: the old one, or the new one if the signal came after its rename
    assert left == b"the old model" or onnx.load_from_string(left).graph.node
