"""Models larger than protobuf allows: the weights are mapped and streamed, never copied.

Each test runs in a process whose address space is limited to what it had plus the mapped file plus a slack that is
smaller than one copy of a weight. The data files are sparse: they cost no disk.
"""

import subprocess
import sys
import textwrap

PROGRAM = """
import gc, pathlib, resource, onnx
from onnx import TensorProto, helper
from pumice.model import fingerprint, load, save, saving, simplify, size
import onnxscript.optimizer, onnxscript.rewriter.rules.common

folder, each, count = pathlib.Path({folder!r}), {each}, 4
tensors = []
for i in range(count):
    tensor = TensorProto(name=f"w{{i}}", data_type=1, dims=[1024, each // 4096], data_location=TensorProto.EXTERNAL)
    for key, value in dict(location="weights.bin", offset=i * each, length=each).items():
        tensor.external_data.add(key=key, value=str(value))
    tensors.append(tensor)
products = [helper.make_node("MatMul", ["x", f"w{{i}}"], [f"y{{i}}"]) for i in range(count)]
outputs = [helper.make_tensor_value_info(f"y{{i}}", 1, ["N", each // 4096]) for i in range(count)]
graph = helper.make_graph(products, "g", [helper.make_tensor_value_info("x", 1, ["N", 1024])], outputs, tensors)
imports = [helper.make_opsetid("", 17)]
(folder / "m.onnx").write_bytes(helper.make_model(graph, ir_version=8, opset_imports=imports).SerializeToString())
with (folder / "weights.bin").open("wb") as file:
    file.truncate(each * count)

status = pathlib.Path("/proc/self/status").read_text()
now = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + each * count + {slack},) * 2)
model = load(folder / "m.onnx")
assert model.opset_imports == {{"": 21}}, model.opset_imports
assert size(model).total == each * count
"""


def run_limited(folder, each, slack, then):
    program = PROGRAM.format(folder=str(folder), each=each, slack=slack) + textwrap.dedent(then)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_more_than_2_gigabytes_load_without_a_copy_of_any_weight(tmp_path):
    run_limited(tmp_path, each=550 << 20, slack=500 << 20, then="")


def test_saving_streams_the_weights(tmp_path):
    run_limited(tmp_path, each=64 << 20, slack=60 << 20, then="""
        saving.EXTERNAL_ABOVE = 100_000_000
        before = fingerprint(model)
        save(model, folder / "out.onnx")
        del model
        gc.collect()
        assert fingerprint(load(folder / "out.onnx")) == before
    """)  # fmt: skip
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".data"]) == 1
    for path in tmp_path.iterdir():
        path.unlink()


def test_simplifying_does_not_copy_the_weights(tmp_path):
    run_limited(tmp_path, each=64 << 20, slack=60 << 20, then="""
        assert simplify(model)  # the four equal weights become one
        assert size(model).total == each
    """)  # fmt: skip
