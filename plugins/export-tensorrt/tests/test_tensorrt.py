"""The exporter with a TensorRT that only records what it is asked for; and without any."""

import shlex
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import parser
from packaging.requirements import Requirement

import pumice
from pumice.cli.application import application
from pumice.data import open_dataset
from pumice.errors import KnobError, ModelError, PumiceError
from pumice.ledger import Ledger
from pumice.model import constant, infer_shapes, load, nodes
from pumice.plan import compile_plan
from pumice.testing import ExporterContract
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_export_tensorrt import TensorRt, engine
from pumice_export_tensorrt.preparation import prepared


class Recorder:
    """A module `tensorrt` of one version."""

    def __init__(self, version="10.13.0", refuses=""):
        self.calls, self.sources = [], []
        self.module = types.ModuleType("tensorrt")
        self.module.__version__ = version
        severities = types.SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", INFO="info")
        self.module.ILogger = type("ILogger", (), {"Severity": severities})
        self.module.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        self.module.BuilderFlag = types.SimpleNamespace(FP16="FP16", BF16="BF16", INT8="INT8")
        self.module.Builder = lambda logger: Builder(self, logger, refuses)
        self.module.OnnxParser = lambda network, logger: Parser(self, network, refuses)
        self.module.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: object())

    def timings(self):
        """What every timing cache was made of."""
        return [arguments[0] for name, arguments in self.calls if name == "create_timing_cache"]

    def flags(self):
        return {arguments[0] for name, arguments in self.calls if name == "set_flag"}


class Parser:
    num_errors = 1

    def __init__(self, recorder, network, refuses):
        self.recorder, self.network, self.refuses = recorder, network, refuses

    def parse_from_file(self, path):
        model = load(path)
        self.recorder.sources.append(model)
        self.network.inputs = [Input(value) for value in model.graph.inputs]
        self.network.num_inputs = len(self.network.inputs)
        return self.refuses != "parse"

    def get_error(self, index):
        return types.SimpleNamespace(desc=lambda: "no importer for Abracadabra")


class Input:
    def __init__(self, value):
        self.name, self._sizes = value.name, list(value.shape)
        self.shape = tuple(size if isinstance(size, int) else -1 for size in self._sizes)

    def get_dimension_name(self, axis):
        return "" if isinstance(self._sizes[axis], int) else self._sizes[axis].value


class Builder:
    def __init__(self, recorder, logger, refuses):
        if refuses == "gpu":
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.recorder, self.logger, self.refuses = recorder, logger, refuses

    def create_network(self, flags):
        network = types.SimpleNamespace(inputs=[])
        network.get_input = lambda i: network.inputs[i]
        return network

    def create_builder_config(self):
        return Config(self.recorder)

    def create_optimization_profile(self):
        return Config(self.recorder)

    def build_serialized_network(self, network, config):
        if self.refuses == "build":
            self.logger.log("error", "no implementation for node Conv_3")
            return None
        return b"engine"


class Timings:
    """Read from a file."""

    def __init__(self, held):
        self.held = held


class Config:
    """Records every call."""

    def __init__(self, recorder):
        self.recorder = recorder

    def __getattr__(self, name):
        def call(*arguments, **_):
            self.recorder.calls.append((name, arguments))
            return self

        return call

    def create_timing_cache(self, held):
        """None where TensorRT cannot read it."""
        self.recorder.calls.append(("create_timing_cache", (held,)))
        return None if held == b"damaged" else Timings(held)

    def set_timing_cache(self, cache, ignore_mismatch):
        return cache.held != b"of another GPU"

    def get_timing_cache(self):
        return types.SimpleNamespace(serialize=lambda: b"timings")


@pytest.fixture
def recorder(monkeypatch):
    def install(**options):
        made = Recorder(**options)
        monkeypatch.setitem(sys.modules, "tensorrt", made.module)
        return made

    return install


class TestTensorRt(ExporterContract):
    strategy = TensorRt
    settings = {"sizes": ["N=1:8:32"]}
    suffix = ".plan"

    @pytest.fixture(autouse=True)
    def _recorded(self, recorder):
        recorder()


def export(model, path, **knobs):
    ledger = Ledger()
    TensorRt(**{"sizes": ("N=1:8:32",), **knobs}).export(model, path, types.SimpleNamespace(ledger=ledger))
    return ledger.of("export")[0].reason


def quantized(target):
    model = tiny_cnn()
    samples = {"x": np.concatenate([feeds["x"] for feeds in random_feeds(8)])}
    recipe = {"step": [{"use": "quantize", "target": target}]}
    return pumice.compress(model, open_dataset(samples, model), recipe, measure=False).model


def test_without_tensorrt_the_export_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PumiceError, match=r"TensorRT cannot be loaded .*: install it with pip install"):
        export(tiny_cnn(), tmp_path / "m.plan")
    assert not list(tmp_path.iterdir())


def test_the_command_line_asks_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    command = ["compress", "nothing.onnx", "--data", "nothing.npz", "--exporter", "tensorrt", "-o", tmp_path / "m.plan"]
    done = CliRunner().invoke(application, [str(word) for word in command])
    assert done.exit_code == 2
    assert "exporter 'tensorrt' cannot write here: TensorRT cannot be loaded" in " ".join(done.output.split())


def test_another_version_is_refused(tmp_path, recorder):
    recorder(version="11.0.1")
    with pytest.raises(PumiceError, match=r"TensorRT 10 is needed and 11\.0\.1 is installed"):
        export(tiny_cnn(), tmp_path / "m.plan")


def test_the_readme_installs_the_version_that_is_taken_and_the_refusal_names_it(monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (command,) = [line.strip() for line in readme.splitlines() if line.strip().startswith("pip install")]
    _, _, package, asked = shlex.split(command)
    requirement = Requirement(asked)
    assert (package, requirement.name) == ("pumice-export-tensorrt", "tensorrt-cu13")
    assert [v for v in range(8, 15) if requirement.specifier.contains(f"{v}.4.0.106")] == [engine.MAJOR]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert engine.missing().endswith(f"install it with pip install '{asked}' on a machine with an NVIDIA GPU")


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        ("gpu", "finds no GPU"),
        ("parse", "does not take the model: no importer for Abracadabra"),
        ("build", "could not build an engine: no implementation for node Conv_3"),
    ],
)
def test_what_tensorrt_refuses_is_said_and_nothing_written(tmp_path, recorder, refuses, said):
    recorder(refuses=refuses)
    with pytest.raises(PumiceError, match=said):
        export(tiny_cnn(), tmp_path / "m.plan")
    assert not list(tmp_path.iterdir())


def test_floats_fall_back_to_16_bits_and_integers_are_allowed_where_there_are_any(tmp_path, recorder):
    found = recorder()
    assert export(tiny_cnn(), tmp_path / "m.plan").endswith("of float16")
    assert found.flags() == {"FP16"}
    found = recorder()
    assert export(quantized("tensorrt"), tmp_path / "m.plan", floats="bfloat16").endswith("8-bit integers and bfloat16")
    assert found.flags() == {"BF16", "INT8"}


def test_free_dimensions_have_a_profile(tmp_path, recorder):
    found = recorder()
    export(tiny_cnn(), tmp_path / "m.plan")
    ((name, least, usual, most),) = [arguments for call, arguments in found.calls if call == "set_shape"]
    assert (name, least[0], usual[0], most[0]) == ("x", 1, 8, 32)
    assert least[1:] == usual[1:] == most[1:]
    with pytest.raises(ModelError, match="dimension 'N' of input 'x' is free"):
        export(tiny_cnn(), tmp_path / "m.plan", sizes=())


@pytest.mark.parametrize("sizes", ["N", "N=4", "N=8:4:16", "N=0:1:2", "=1:2:3"])
def test_sizes_that_make_no_sense_are_refused(tmp_path, recorder, sizes):
    recorder()
    with pytest.raises(KnobError, match="least, usual and most"):
        export(tiny_cnn(), tmp_path / "m.plan", sizes=(sizes,))


def test_the_timing_cache_of_one_build_is_read_by_the_next(tmp_path, recorder):
    found, cache = recorder(), tmp_path / "timings"
    for _ in range(2):
        export(tiny_cnn(), tmp_path / "m.plan", timing_cache=str(cache))
    assert found.timings() == [b"", b"timings"]


@pytest.mark.parametrize("held", [b"damaged", b"of another GPU"])
def test_a_timing_cache_that_does_not_fit_is_made_anew(tmp_path, recorder, held):
    found, cache = recorder(), tmp_path / "timings"
    cache.write_bytes(held)
    export(tiny_cnn(), tmp_path / "m.plan", timing_cache=str(cache))
    assert found.timings() == [held, b""]
    assert cache.read_bytes() == b"timings"


def test_a_timing_cache_that_cannot_be_read_is_named(tmp_path, recorder):
    recorder()
    with pytest.raises(PumiceError, match=r"cannot be read .*: name another with the knob 'timing_cache'"):
        export(tiny_cnn(), tmp_path / "m.plan", timing_cache=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_integers_made_for_tensorrt_are_taken_and_those_for_another_runtime_refused(tmp_path, recorder):
    found = recorder()
    export(quantized("tensorrt"), tmp_path / "m.plan")
    zeros = [constant(node.inputs[2]) for node in nodes(found.sources[0]) if node.op_type == "QuantizeLinear"]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    with pytest.raises(ModelError, match=r"makes uint8, not int8.*quantize with target='tensorrt'"):
        export(quantized("ort-cpu"), tmp_path / "m.plan")


def test_a_model_in_floats_is_quantized_symmetrically_with_samples(tmp_path, recorder):
    found = recorder()
    np.savez(tmp_path / "samples.npz", x=np.concatenate([feeds["x"] for feeds in random_feeds(8)]))
    export(tiny_cnn(), tmp_path / "m.plan", calibration=str(tmp_path / "samples.npz"))
    assert found.flags() == {"FP16", "INT8"}


TEXT = """<ir_version: 10, opset_import: ["" : 21]>
layer (float[N,4] x) => (float[N,3] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    w_d = DequantizeLinear <axis=1> (w, w_s, w_z)
    b_d = DequantizeLinear <axis=0> (b, b_s)
    y = Gemm (d, w_d, b_d)
}"""
HELD = {
    "s": np.array(1 / 32, np.float32), "z": np.array(0, np.int8),
    "w": np.arange(12).reshape(4, 3).astype(np.int8), "w_s": np.full(3, 0.5, np.float32), "w_z": np.zeros(3, np.int8),
    "b": np.array([1, -2, 70000], np.int32), "b_s": np.array([1.0, 2.0, 0.25], np.float32) / 64,
}  # fmt: skip


def layer(**changed):
    proto = parser.parse_model(TEXT)
    held = {**HELD, **changed}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    return infer_shapes(ir.from_proto(proto))


def test_a_bias_of_integers_becomes_the_same_real_numbers():
    model, x = layer(), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = prepared(model)
    (gemm,) = (node for node in nodes(found) if node.op_type == "Gemm")
    np.testing.assert_array_equal(constant(gemm.inputs[2]), HELD["b"] * HELD["b_s"])
    ours, before = (compile_plan(m, kernels=()).run({"x": x})["y"] for m in (found, model))
    np.testing.assert_array_equal(ours, before)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"z": np.array(3, np.int8)}, "a zero point other than 0"),
        ({"w_z": np.array([0, 1, 0], np.int8)}, "a zero point other than 0"),
        ({"s": np.array(0, np.float32)}, "not a positive number"),
        ({"z": np.array(0, np.uint8)}, "makes uint8"),
    ],
)
def test_integers_that_are_not_tensorrts_are_named(changed, said):
    with pytest.raises(ModelError, match=said):
        prepared(layer(**changed))


def test_several_scales_are_for_weights_alone():
    zeros = np.zeros(4, np.int8)
    with pytest.raises(ModelError, match="several scales for an activation"):
        prepared(layer(s=np.full(4, 0.5, np.float32), z=zeros))
