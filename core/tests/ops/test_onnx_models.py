"""Whole models that ship with onnx, against the outputs stored beside them."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.errors import UnsupportedOp
from pumice.ops.node_cases import compare
from pumice.plan import compile_plan

DATA = Path(onnx.__file__).parent / "backend/test/data"
KINDS = ("pytorch-converted", "pytorch-operator", "simple")
FOLDERS = sorted(path.parent for kind in KINDS for path in (DATA / kind).glob("*/model.onnx"))
LIGHT = sorted((DATA / "light").glob("*.onnx"))
REFUSED = {"StringNormalizer", "Gradient"}


def stored(path, type_proto):
    """A value stored as a TensorProto, or as a SequenceProto where the model says so."""
    if type_proto.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def numbered(folder, prefix):
    return sorted(folder.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name.removeprefix("test_"))
def test_model_gives_its_stored_outputs(folder):
    proto = onnx.load(folder / "model.onnx")
    if not REFUSED.isdisjoint(node.op_type for node in proto.graph.node):
        with pytest.raises(UnsupportedOp, match="|".join(REFUSED)):
            compile_plan(ir.from_proto(proto))
        return
    plan = compile_plan(ir.from_proto(proto))
    types = {v.name: v.type for v in [*proto.graph.input, *proto.graph.output]}
    required = [spec.name for spec in plan.inputs if spec.required]
    for data in sorted(folder.glob("test_data_set_*")):
        inputs = zip(required, numbered(data, "input"), strict=True)
        results = plan.run({name: stored(path, types[name]) for name, path in inputs})
        for name, path in zip(plan.output_names, numbered(data, "output"), strict=True):
            compare(results[name], stored(path, types[name]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem.removeprefix("light_"))
def test_classic_network_gives_its_stored_output(path):
    plan = compile_plan(ir.load(path))
    (spec,) = [spec for spec in plan.inputs if spec.required]
    ramp = np.arange(np.prod(spec.shape)).reshape(spec.shape) / np.prod(spec.shape)
    (result,) = plan.run({spec.name: ramp.astype(np.float32)}).values()
    expected = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    compare(result, onnx.numpy_helper.to_array(expected), rtol=1e-3, atol=1e-6)
