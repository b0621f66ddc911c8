"""What a distillation needs is known before it starts, and a teacher may be larger than memory."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pumice import compress
from pumice.autograd import Tape
from pumice.distil.architectures import built
from pumice.distil.memory import planned
from pumice.distil.streaming import Streamed
from pumice.distil.students import weights
from pumice.errors import DataError, ModelError
from pumice.model import load, save, saving
from pumice.plan import compile_plan
from pumice.recipe import Recipe
from pumice.steps import Distil
from pumice.testing.models import random_feeds, tiny_cnn
from pumice.train.parameters import parameter_names

from .conftest import Square, pictures, words


def held(model, feeds):
    """Bytes that a real forward run keeps for the gradients, views and constants apart."""
    plan = compile_plan(model)
    tape = Tape(plan, parameter_names(plan), training=True)
    _, pull = tape.forward(feeds)
    owned = {}
    for residual in pull.residuals.values():
        for array in residual.arrays():
            while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
                array = array.base
            owned[id(array)] = array
    constants = {id(plan.program.template[slot]) for slot in plan.initializers.values()}
    known = {plan.program.template[slot].tobytes() for slot in plan.initializers.values()}
    return sum(a.nbytes for key, a in owned.items() if key not in constants and a.tobytes() not in known)


@pytest.mark.parametrize(
    ("family", "sizes", "shapes"),
    [("resnet", {"widths": [8, 12]}, {"x": (16, 3, 8, 8)}), ("gpt", {"width": 16, "heads": 2}, {"ids": (8, 12)})],
)
def test_residuals_are_those_of_a_real_run(network, family, sizes, shapes):
    model = network(family, **sizes)
    feeds = {name: np.ones(shape, np.float32 if name == "x" else np.int64) for name, shape in shapes.items()}
    found = planned(model, model, Distil(), shapes).residuals[1]
    assert found == pytest.approx(held(model, feeds), rel=0.1)


def test_checkpoints_need_less(network):
    found = planned(*[network("gpt", width=16, heads=2, layers=6)] * 2, Distil(), {"ids": (8, 32)})
    assert min(found.residuals.values()) < found.residuals[1] / 2


def test_what_a_run_holds_at_once_does_not_grow_with_the_layers(network):
    models = [network("gpt", width=16, heads=2, layers=layers) for layers in (2, 6)]
    few, many = (planned(model, model, Distil(), {"ids": (8, 32)}).teacher_run for model in models)
    assert few == many


def test_optimizers_hold_what_they_hold(network):
    model = network("resnet", widths=[8])
    plans = {name: planned(model, model, Distil(optimizer=name), {"x": (4, 3, 8, 8)}) for name in ("sgd", "adamw")}
    assert plans["adamw"].optimizer == 2 * plans["sgd"].optimizer == 2 * plans["sgd"].gradients


def test_three_billion_weights_are_planned_for_without_one_of_them():
    sizes = {"family": "gpt", "width": 5120, "heads": 32, "layers": 9, "vocabulary": 11, "positions": 2048}
    teacher = built(sizes, words(), None)
    student = built({**sizes, "width": 2560, "layers": 6}, words(), None)
    assert weights(teacher) > 2_800_000_000
    assert 450_000_000 < weights(student) < 550_000_000
    plan = planned(teacher, student, Distil(), {"ids": (4, 1024)})
    assert plan.teacher == pytest.approx(4 * weights(teacher), rel=0.01)
    assert plan.optimizer == pytest.approx(8 * weights(student), rel=0.01)
    assert "everything fits" in plan.fitting(200 * 10**9)
    assert "checkpoints" in plan.fitting(plan.total(plan.residuals[4]))
    assert "layer by layer" in plan.fitting(plan.total(min(plan.residuals.values()), streamed=True))
    assert "does not fit" in plan.fitting(10**9)


def test_an_input_without_a_size_cannot_be_planned_for(network):
    with pytest.raises(ModelError, match="input 'ids' has no shape"):
        planned(*[network("gpt", width=8, heads=2)] * 2, Distil(), {})


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr("pumice.distil.application.available_bytes", lambda: 10_000)
    step = Distil(losses=(Square(),), width=0.5)
    with pytest.raises(DataError, match=r"does not suffice for this distillation: it needs 0\.00 GB"):
        compress(tiny_cnn(), {"x": pictures(32)["x"]}, Recipe([step]), runtime="reference", measure=False)


# --- layer by layer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """The model of a file whose weights lie beside it."""
    monkeypatch.setattr(saving, "EXTERNAL_ABOVE", 100)
    save(tiny_cnn(), tmp_path / "teacher.onnx")
    return load(tmp_path / "teacher.onnx")


def test_layer_by_layer_it_answers_the_same(on_disk):
    streamed, feeds = Streamed.of(on_disk, ["r1", "logits"]), random_feeds(1)[0]
    assert streamed.last
    found = streamed.run(feeds)
    for name, value in compile_plan(tiny_cnn(), ["r1", "logits"]).run(feeds).items():
        np.testing.assert_allclose(found[name], value, atol=1e-3)


def test_a_student_learns_from_a_streamed_teacher(on_disk):
    step = Distil(losses=(Square(),), width=0.5, epochs=1, stream=True)
    data = {"x": pictures(64)["x"]}
    plain, streamed = (
        compress(model, data, Recipe([each]), runtime="reference", measure=False).model
        for model, each in ((tiny_cnn(), Distil(losses=(Square(),), width=0.5, epochs=1)), (on_disk, step))
    )
    for name, value in plain.graph.initializers.items():
        np.testing.assert_allclose(
            streamed.graph.initializers[name].const_value.numpy(), value.const_value.numpy(), atol=1e-4
        )


LARGER_THAN_MEMORY = """
import pathlib, resource, numpy as np, onnx
from onnx import TensorProto, helper
from pumice.distil.streaming import Streamed
from pumice.model import load

folder, width, layers = pathlib.Path({folder!r}), 2048, 24
each, tensors, nodes = width * width * 4, [], []
for i in range(layers):
    tensor = TensorProto(name=f"w{{i}}", data_type=1, dims=[width, width], data_location=TensorProto.EXTERNAL)
    for key, value in dict(location="weights.bin", offset=i * each, length=each).items():
        tensor.external_data.add(key=key, value=str(value))
    tensors.append(tensor)
    nodes.append(helper.make_node("MatMul", [f"x{{i}}", f"w{{i}}"], [f"x{{i + 1}}"]))
ends = [helper.make_tensor_value_info(name, 1, ["N", width]) for name in ("x0", f"x{{layers}}")]
graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 21)])
(folder / "m.onnx").write_bytes(model.SerializeToString())
with (folder / "weights.bin").open("wb") as file:
    file.truncate(each * layers)
    for i in range(layers):
        for row in range(width):
            file.seek(i * each + row * (width + 1) * 4)
            file.write(np.float32(1).tobytes())

x = np.arange(3 * width, dtype=np.float32).reshape(3, width)
x @ np.zeros((width, 8), np.float32)  # the threads of the product have their stacks now


def status(key):
    return int(pathlib.Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024


resource.setrlimit(resource.RLIMIT_DATA, (status("VmData:") + 4 * each,) * 2)
teacher = Streamed.of(load(folder / "m.onnx"))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
(y,) = teacher.run({{"x0": x}}).values()
assert np.array_equal(x, y)
assert status("VmHWM:") - before < layers * each / 4, (status("VmHWM:") - before) / each
"""


def test_a_teacher_larger_than_the_memory_that_it_may_have_runs(tmp_path):
    """Data of at most four layers of twenty-four, and never more than a quarter of the weights resident."""
    program = textwrap.dedent(LARGER_THAN_MEMORY.format(folder=str(tmp_path)))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_plan_is_told_before_the_training():
    step = Distil(losses=(Square(),), width=0.5, epochs=1)
    result = compress(tiny_cnn(), {"x": pictures(32)["x"]}, Recipe([step]), runtime="reference", measure=False)
    (told,) = [e.details["memory"] for e in result.ledger.of("distil") if "memory" in e.details]
    assert told["teacher's weights"] == sum(v.const_value.nbytes for v in tiny_cnn().graph.initializers.values())


def test_sizes_inferred_for_another_batch_do_not_count(network):
    model = network("gpt", width=8, heads=2)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and len(value.shape) == 3:
                value.shape = type(value.shape)([1, 2, value.shape[2]])
    small, large = (planned(model, model, Distil(), {"ids": (4, n)}).residuals[1] for n in (8, 16))
    assert large > 1.9 * small
