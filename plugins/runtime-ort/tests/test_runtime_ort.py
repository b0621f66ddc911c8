import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.errors import KnobError, ModelError
from pumice.measure import pick_runtime
from pumice.model import save
from pumice.plan import compile_plan
from pumice.testing import RuntimeContract
from pumice_runtime_ort import OrtRuntime

ORT = OrtRuntime()


class TestContract(RuntimeContract):
    strategy = OrtRuntime


def sentence(action, *arguments, **named) -> str:
    with pytest.raises(ModelError) as caught:
        action(*arguments, **named)
    text = str(caught.value)
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    return text


def test_importing_the_plugin_does_not_import_onnxruntime():
    code = "import sys, pumice_runtime_ort; sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_the_default_where_it_is_installed():
    assert pick_runtime().name == "ort"


def test_the_description_states_what_really_runs(model):
    import onnxruntime

    text = OrtRuntime(graph_optimization="basic").open(model, threads=2).description
    assert text == f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider, 2 threads, graph optimization basic"
    assert f"{os.cpu_count()} logical cores" in ORT.open(model).description


def test_the_threads_asked_for_are_set(model):
    assert ORT.open(model, threads=3).session.get_session_options().intra_op_num_threads == 3


def test_a_process_that_may_not_use_all_cores_does_not_start_threads_for_them(model):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        session = ORT.open(model)
    finally:
        os.sched_setaffinity(0, allowed)
    assert session.session.get_session_options().intra_op_num_threads == 1
    assert "1 thread," in session.description


@pytest.mark.parametrize("level", ["all", "extended", "basic", "none"])
def test_every_level_gives_the_same_answer(model, feeds, level):
    found = OrtRuntime(graph_optimization=level).open(model).run(feeds)["logits"]
    np.testing.assert_allclose(found, compile_plan(model).run(feeds)["logits"], rtol=1e-4, atol=1e-5)


def test_the_other_knobs_are_set(model, feeds):
    session = OrtRuntime(inter_op_threads=2, memory_arena=False).open(model).session
    options = session.get_session_options()
    assert (options.inter_op_num_threads, options.enable_cpu_mem_arena) == (2, False)
    with pytest.raises(KnobError):
        OrtRuntime(graph_optimization="most")


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "CpuExecutionProvider"])
def test_a_provider_that_is_not_there_is_never_replaced_in_silence(model, provider):
    text = sentence(OrtRuntime(providers=(provider, "CPUExecutionProvider")).open, model)
    assert f"'{provider}' did not load" in text
    assert "CPUExecutionProvider" in text


def test_a_provider_that_onnxruntime_drops_while_loading_is_an_error(model, monkeypatch):
    """A build may list a provider whose libraries are missing on the machine; onnxruntime then falls back."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    text = sentence(OrtRuntime(providers=("CUDAExecutionProvider",)).open, model)
    assert "loaded model 'cnn' with CPUExecutionProvider" in text


def test_onnxruntimes_own_fallback_in_mid_run_is_off(model):
    assert ORT.open(model).session._enable_fallback is False


def test_inputs_and_constants_may_be_asked_for_too(model, feeds, tmp_path):
    save(model, tmp_path / "m.onnx")
    for source in (model, tmp_path / "m.onnx"):
        found = ORT.open(source, outputs=["w1", "logits", "x"]).run(feeds)
        assert list(found) == ["w1", "logits", "x"]
        np.testing.assert_array_equal(found["x"], feeds["x"])
        assert found["w1"].shape == (16, 3, 3, 3)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floating_types_run(written, dtype):
    model = written(f"{dtype}[N,3] x", f"{dtype}[N,3] y", "y = Mul(x, x)")
    x = np.arange(6).reshape(2, 3).astype({"double": np.float64}.get(dtype, np.float16))
    found = ORT.open(model).run({"x": x})["y"]
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x * x)


def test_external_data_is_found_whether_the_model_is_a_file_or_loaded(model, feeds, tmp_path):
    expected = ORT.open(model).run(feeds)["logits"]
    save(model, tmp_path / "m.onnx", external_data=True)
    inner = str(model.graph[0].outputs[0].name)
    loaded = ir.load(tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), loaded):
        found = ORT.open(source, outputs=[inner, "logits"]).run(feeds)
        np.testing.assert_array_equal(found["logits"], expected)
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in loaded.graph.initializers.values())


def test_weights_beyond_protobufs_limit_go_through_a_file(model, feeds, monkeypatch):
    expected = ORT.open(model).run(feeds)["logits"]
    monkeypatch.setattr("pumice.model.saving.EXTERNAL_ABOVE", 1000)
    np.testing.assert_array_equal(ORT.open(model, outputs=["logits"]).run(feeds)["logits"], expected)
    np.testing.assert_array_equal(ORT.open(model).run(feeds)["logits"], expected)


def test_a_model_of_a_newer_file_format_is_written_in_one_that_is_read(model, feeds):
    model.ir_version = 14
    assert ORT.open(model).run(feeds)["logits"].shape == (4, 5)
    assert model.ir_version == 14


def test_a_file_of_a_newer_format_is_a_sentence(model, tmp_path):
    proto = ir.to_proto(model)
    proto.ir_version = 99
    onnx.save(proto, tmp_path / "m.onnx")
    text = sentence(ORT.open, tmp_path / "m.onnx")
    assert "m.onnx" in text
    assert "99" in text


def test_files_that_are_no_model_are_told(tmp_path):
    (tmp_path / "m.onnx").write_text("hello")
    assert "cannot load" in sentence(ORT.open, tmp_path / "m.onnx")
    assert "cannot be read" in sentence(ORT.open, tmp_path / "m.onnx", outputs=["y"])
    assert "no model file" in sentence(ORT.open, tmp_path / "gone.onnx")


def test_an_operator_that_onnxruntime_lacks_is_told(written):
    model = written("float[N] x", "float[N] y", "y = Abs(x)")
    model.graph[0].domain = "of.nobody"
    model.opset_imports["of.nobody"] = 1
    assert "Abs" in sentence(ORT.open, model)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"X": np.ones((1, 3, 8, 8), np.float32)}, "no input 'X'; known: x"),
        ({"x": np.ones((1, 3, 8), np.float32)}, "x"),
        ({"x": np.ones((1, 3, 8, 8), np.float64)}, "double"),
        ({"x": np.ones((1, 3, 9, 8), np.float32)}, "Got: 9 Expected: 8"),
    ],
)
def test_feeds_that_do_not_fit_are_told(model, feeds, words):
    assert words in sentence(ORT.open(model).run, feeds)


def test_a_node_that_fails_while_running_is_told(written):
    model = written("float[N,3] x,  int64[1] at", "float[M,3] y", "y = Gather<axis=0>(x, at)")
    session = ORT.open(model)
    text = sentence(session.run, {"x": np.ones((2, 3), np.float32), "at": np.array([7])})
    assert "Gather" in text


def test_nothing_is_logged(model, tmp_path):
    """onnxruntime writes errors and warnings to standard error from C++; ours are the sentences."""
    save(model, tmp_path / "m.onnx")
    code = f"""
import numpy as np
from pumice.errors import ModelError
from pumice_runtime_ort import OrtRuntime
session = OrtRuntime().open({str(tmp_path / "m.onnx")!r}, threads=2)
try:
    session.run({{"x": np.ones((1, 3, 9, 8), np.float32)}})
except ModelError:
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_optimized_ops_count_the_integer_kernels(written):
    quantize = "<ir> = QuantizeLinear(<in>, s, z)  <out> = DequantizeLinear(<ir>, s, z)"
    steps = [("x", "xq", "xd"), ("w", "wq", "wd"), ("r", "rq", "y")]
    parts = [quantize.replace("<in>", a).replace("<ir>", b).replace("<out>", c) for a, b, c in steps]
    constants = "s = Constant<value_float=0.1>()  z = Constant<value: tensor = uint8 {128}>()"
    body = f"{constants} {parts[0]} {parts[1]} r = Conv(xd, wd) {parts[2]}"
    model = written("float[N,4,8,8] x,  float[4,4,3,3] w", "float[N,4,6,6] y", body)
    found = ORT.optimized_ops(model)
    assert found["QLinearConv"] == 1
    assert found["Conv"] == 0
    assert OrtRuntime(graph_optimization="none").optimized_ops(model)["Conv"] == 1


def test_optimized_ops_look_into_subgraphs(written):
    branches = "then_branch = a () => (float[N] p) { p = Abs(x) }, else_branch = b () => (float[N] q) { q = Neg(x) }"
    body = f"y = If (c) <{branches}>"
    found = OrtRuntime(graph_optimization="none").optimized_ops(written("bool c,  float[N] x", "float[N] y", body))
    assert (found["If"], found["Abs"], found["Neg"]) == (1, 1, 1)


def test_the_profile_times_every_node_in_order(model, feeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = OrtRuntime(graph_optimization="none").profile(model, feeds)
    assert [(node, op) for node, op, _ in found] == [(n.name, n.op_type) for n in model.graph]
    assert all(0 <= microseconds < 1e6 for *_, microseconds in found)
    assert list(Path().iterdir()) == []


def test_a_plain_install_without_onnxruntime_says_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install onnxruntime" in ORT.available()
