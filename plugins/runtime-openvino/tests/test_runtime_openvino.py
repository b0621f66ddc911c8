import subprocess
import sys

import numpy as np
import pytest

from pumice.errors import ModelError
from pumice.measure import pick_runtime
from pumice.model import save
from pumice.plan import compile_plan
from pumice.testing import RuntimeContract
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_runtime_openvino import OpenVinoRuntime

OPENVINO = OpenVinoRuntime()


class TestContract(RuntimeContract):
    strategy = OpenVinoRuntime


def sentence(action, *arguments, **named) -> str:
    with pytest.raises(ModelError) as caught:
        action(*arguments, **named)
    assert "\n" not in str(caught.value)
    assert "src/" not in str(caught.value)
    return str(caught.value)


def test_importing_the_plugin_does_not_import_openvino():
    code = "import sys, pumice_runtime_openvino; sys.exit('openvino' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_there_and_not_the_default():
    assert OPENVINO.available() is None
    assert pick_runtime("openvino").name == "openvino"
    assert pick_runtime().name != "openvino"


def test_the_description_states_what_really_runs():
    text = OPENVINO.open(tiny_cnn(), threads=1).description
    assert "CPU, 1 thread, precision f32" in text


def test_outputs_come_in_the_order_that_was_asked_for():
    model, (feeds,) = tiny_cnn(), random_feeds(1)
    inner = [str(node.outputs[0].name) for node in model.graph][:2][::-1]
    assert list(OPENVINO.open(model, outputs=inner).run(feeds)) == inner


def test_a_shape_that_openvino_would_read_anyway_is_refused():
    session, (feeds,) = OPENVINO.open(tiny_cnn()), random_feeds(1)
    ((name, array),) = feeds.items()
    assert f"input '{name}' has shape" in sentence(session.run, {name: array[:, :, :-1]})


def test_wrong_names_types_and_values_are_told_in_one_sentence(tmp_path):
    session, (feeds,) = OPENVINO.open(tiny_cnn()), random_feeds(1)
    ((name, array),) = feeds.items()
    assert "has no input 'z'" in sentence(session.run, {"z": array})
    assert f"input '{name}' is missing" in sentence(session.run, {})
    assert "is float64 and must be float32" in sentence(session.run, {name: array.astype(np.float64)})
    assert "has no value 'nothing'" in sentence(OPENVINO.open, tiny_cnn(), outputs=["nothing"])
    assert "there is no model file" in sentence(OPENVINO.open, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    assert "OpenVINO cannot load" in sentence(OPENVINO.open, tmp_path / "text.onnx")


def test_a_quantized_model_answers_as_the_reference_does(tmp_path):
    import pumice

    feeds = random_feeds(16)
    pumice.compress(tiny_cnn(), feeds, measure=False).save(tmp_path / "int8.onnx")
    model = pumice.load(tmp_path / "int8.onnx")
    ours = compile_plan(model, kernels=()).run(feeds[0])
    for name, array in OPENVINO.open(tmp_path / "int8.onnx").run(feeds[0]).items():
        assert np.abs(array - ours[name]).max() < 0.05 * np.abs(ours[name]).max()


def test_a_profile_names_what_ran_and_how_long_it_took():
    times = OPENVINO.profile(tiny_cnn(), random_feeds(1)[0], threads=1)
    assert "Convolution" in {op for _, op, _ in times}
    assert sum(us for _, _, us in times) > 0


def test_the_file_may_go_once_the_session_is_open(tmp_path):
    save(tiny_cnn(), tmp_path / "m.onnx")
    session, (feeds,) = OPENVINO.open(tmp_path / "m.onnx"), random_feeds(1)
    (tmp_path / "m.onnx").unlink()
    assert session.run(feeds)
