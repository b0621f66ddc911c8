"""What the tests of the model package share: models written as ONNX text, and a runtime to compare with."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pumice.model import save


def parsed(graph, opset=21, domains=()):
    """The ModelProto of a graph in ONNX text, under the given opset and version 1 of other domains."""
    imports = ", ".join([f'"": {opset}', *(f'"{domain}": 1' for domain in domains)])
    return onnx.parser.parse_model(f"<ir_version: {10 if opset > 10 else 6}, opset_import: [{imports}]> {graph}")


@pytest.fixture
def stored(tmp_path):
    """Write a model given as ONNX text (or proto) and return its path; keyword arguments become initializers."""

    def write(source, name="model.onnx", *, opset=21, domains=(), **weights):
        proto = source if isinstance(source, onnx.ModelProto) else parsed(source, opset, domains)
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in weights.items())
        path = tmp_path / name
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def session(model):
    """An onnxruntime session without graph optimizations: what is in the file is what runs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def run(tmp_path):
    """Outputs of a file or an in-memory model in onnxruntime."""

    def outputs(model, **feeds):
        if isinstance(model, ir.Model):
            save(model, tmp_path / "run.onnx")
            model = tmp_path / "run.onnx"
        return session(model).run(None, feeds)

    return outputs


@pytest.fixture
def rng():
    return np.random.default_rng(7)
