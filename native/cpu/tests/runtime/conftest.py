"""Small networks with every kind of block, quantized by onnxruntime itself, and onnxruntime's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """A graph node by node; weights are drawn as they are asked for."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, values) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(2.0 / max(1, int(np.prod(shape[1:]))))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def node(self, op: str, *inputs: str, output: str = "", **attributes) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes) -> str:
        w = self.weight(outputs, inputs // attributes.get("group", 1), kernel, kernel)
        b = self.constant(self.rng.standard_normal(outputs).astype(np.float32) * 0.1)
        return self.node("Conv", x, w, b, pads=[kernel // 2] * 4, **attributes)

    def save(self, path: Path, inputs: dict, outputs: dict) -> Path:
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info(n, *v) for n, v in inputs.items()],
            [helper.make_tensor_value_info(n, *v) for n, v in outputs.items()], self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


FLOAT = TensorProto.FLOAT


def _cnn(path: Path) -> Path:
    """A stem, a residual block, a depthwise one, pooling, concatenation, a classifier."""
    net = Builder()
    y = net.node("Relu", net.conv("x", 3, 16, strides=[2, 2]))
    y = net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    z = net.node("Relu", net.conv(y, 16, 16))
    y = net.node("Relu", net.node("Add", y, net.conv(z, 16, 16)))
    z = net.node("Clip", net.conv(y, 16, 16, group=16), net.constant(np.float32(0)), net.constant(np.float32(6)))
    y = net.node("Concat", y, net.conv(z, 16, 9, kernel=1), axis=1)
    y = net.node("Flatten", net.node("GlobalAveragePool", y))
    net.node("Gemm", y, net.weight(10, 25), net.weight(10), transB=1, output="y")
    return net.save(path, {"x": (FLOAT, ["N", 3, 33, 30])}, {"y": (FLOAT, ["N", 10])})


def _transformer(path: Path) -> Path:
    """An encoder layer with GELU and masked attention over sequences of any length."""
    net, width, heads = Builder(), 32, 4

    def dense(x: str, inputs: int, outputs: int) -> str:
        return net.node("Add", net.node("MatMul", x, net.weight(inputs, outputs)), net.weight(outputs))

    def norm(x: str) -> str:
        return net.node("LayerNormalization", x, net.weight(width), net.weight(width), axis=-1, epsilon=1e-5)

    def split(x: str, perm: list[int]) -> str:
        shape = net.constant(np.array([0, 0, heads, width // heads]))
        return net.node("Transpose", net.node("Reshape", x, shape), perm=perm)

    x = norm(net.node("Gather", net.weight(50, width), "tokens"))
    q, v = (split(dense(x, width, width), [0, 2, 1, 3]) for _ in range(2))
    k = split(dense(x, width, width), [0, 2, 3, 1])
    scores = net.node("Mul", net.node("MatMul", q, k), net.constant(np.float32(width // heads) ** -0.5))
    hidden = net.node("Sub", net.constant(np.float32(1)), net.node("Cast", "mask", to=FLOAT))
    hidden = net.node("Mul", hidden, net.constant(np.float32(-1e4)))
    hidden = net.node("Unsqueeze", hidden, net.constant(np.array([1, 2])))
    y = net.node("MatMul", net.node("Softmax", net.node("Add", scores, hidden), axis=-1), v)
    y = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 1, 3]), net.constant(np.array([0, 0, width])))
    x = norm(net.node("Add", x, dense(y, width, width)))
    y = dense(x, width, 2 * width)
    erf = net.node("Erf", net.node("Div", y, net.constant(np.float32(np.sqrt(2)))))
    y = net.node(
        "Mul", net.node("Mul", y, net.node("Add", erf, net.constant(np.float32(1)))), net.constant(np.float32(0.5))
    )
    net.node("Identity", norm(net.node("Add", x, dense(y, 2 * width, width))), output="y")
    inputs = {name: (TensorProto.INT64, ["N", "T"]) for name in ("tokens", "mask")}
    return net.save(path, inputs, {"y": (FLOAT, ["N", "T", width])})


def images(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, 3, 33, 30)).astype(np.float32)}


def tokens(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[0, -1] = 0
    return {"tokens": rng.integers(0, 50, (batch, length)), "mask": mask}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="session")
def cnn(folder) -> Path:
    return _cnn(folder / "cnn.onnx")


@pytest.fixture(scope="session")
def transformer(folder) -> Path:
    return _transformer(folder / "transformer.onnx")


@pytest.fixture(scope="session", params=["uint8", "int8"])
def quantized_cnn(folder, cnn, request) -> Path:
    """Static QDQ of every operator, weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = iter([images(2, seed) for seed in range(4)])

        def get_next(self):
            return next(self.feeds, None)

    target = folder / f"cnn.{request.param}.onnx"
    kind = QuantType.QUInt8 if request.param == "uint8" else QuantType.QInt8
    quantize_static(cnn, target, Reader(), activation_type=kind, weight_type=QuantType.QInt8, per_channel=True)
    return target


@pytest.fixture(scope="session")
def quantized_transformer(folder, transformer) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "transformer.dynamic.onnx"
    quantize_dynamic(transformer, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return target


@pytest.fixture(scope="session")
def onnxruntime_says() -> Callable:
    """`onnxruntime_says(path, feeds)`: the outputs by name."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)

    def run(path: Path, feeds: dict) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


@pytest.fixture
def given_images():
    return images


@pytest.fixture
def given_tokens():
    return tokens
