"""Gradients stay where their arrays are: run on arrays that only NumPy's protocols carry, as a device's are."""

import sys
import types

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.autograd import Tape
from pumice.ops import core_table
from pumice.ops.record import Node
from pumice.plan import compile_plan
from pumice.train import Parameters
from pumice.train.optimizers import OPTIMIZERS, LossScale, Optimizer, clip


class Foreign(np.lib.mixins.NDArrayOperatorsMixin):
    """Wraps a NumPy array as a device's array would: dispatches, never converts."""

    __module__ = "foreign_arrays"
    __array_priority__ = 100

    def __init__(self, held):
        self.held = held

    def __array__(self, *_, **__):
        raise TypeError("an array of the device was about to be copied to the host")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        given = {} if out is None else {"out": tuple(map(bare, out))}
        found = getattr(ufunc, method)(*map(bare, inputs), **given, **{k: bare(v) for k, v in options.items()})
        return out[0] if out is not None else wrapped(found)

    def __array_function__(self, function, _, arguments, options):
        return wrapped(function(*bare(arguments), **bare(options)))

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.held, name)
        return (lambda *a, **k: wrapped(value(*bare(a), **bare(k)))) if callable(value) else wrapped(value)

    def __getitem__(self, index):
        return wrapped(self.held[bare(index)])

    def __setitem__(self, index, value):
        self.held[bare(index)] = bare(value)

    def __len__(self):
        return len(self.held)

    def __float__(self):
        return float(self.held)  # a single number may be read

    def __bool__(self):
        return bool(self.held)


def bare(value):
    if isinstance(value, Foreign):
        return value.held
    if isinstance(value, tuple | list):
        return type(value)(map(bare, value))
    return {k: bare(v) for k, v in value.items()} if isinstance(value, dict) else value


def wrapped(value):
    if isinstance(value, np.ndarray | np.floating):
        return Foreign(np.asarray(value))
    return type(value)(map(wrapped, value)) if isinstance(value, tuple | list) and not _plain(value) else value


def _plain(value):
    return all(isinstance(v, int) for v in value)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    module = types.ModuleType("foreign_arrays")
    module.__getattr__ = lambda name: lambda *a, **k: wrapped(getattr(np, name)(*bare(a), **bare(k)))
    monkeypatch.setitem(sys.modules, "foreign_arrays", module)


DRAW = np.random.default_rng(0).standard_normal
CASES = {
    "Relu": [DRAW((3, 4))], "Gelu": [DRAW((3, 4))], "Sigmoid": [DRAW((3, 4))], "HardSwish": [DRAW((3, 4))],
    "Clip": [DRAW((3, 4)), np.array(-0.5), np.array(0.5)], "Add": [DRAW((3, 4)), DRAW((4,))],
    "Mul": [DRAW((3, 4)), DRAW((3, 1))], "Div": [DRAW((3, 4)), DRAW((4,))], "Sub": [DRAW((3, 4)), DRAW((1,))],
    "MatMul": [DRAW((2, 3, 4)), DRAW((4, 5))], "Gemm": [DRAW((3, 4)), DRAW((4, 5)), DRAW((5,))],
    "Softmax": [DRAW((3, 4))], "LogSoftmax": [DRAW((3, 4))], "ReduceSum": [DRAW((3, 4))], "ReduceMax": [DRAW((3, 4))],
    "LayerNormalization": [DRAW((3, 4)), DRAW((4,)), DRAW((4,))],
    "RMSNormalization": [DRAW((3, 4)), DRAW((4,))],
    "BatchNormalization": [DRAW((4, 2, 3)), DRAW((2,)), DRAW((2,)), DRAW((2,)), np.ones(2)],
    "InstanceNormalization": [DRAW((4, 2, 3)), DRAW((2,)), DRAW((2,))],
    "GlobalAveragePool": [DRAW((2, 3, 4, 4))], "Flatten": [DRAW((2, 3, 4))], "Transpose": [DRAW((2, 3, 4))],
    "Concat": [DRAW((2, 3)), DRAW((2, 5))], "Identity": [DRAW((2, 3))],
}  # fmt: skip


@pytest.mark.parametrize("op_type", CASES)
def test_a_gradient_stays_on_its_device(op_type):
    inputs, op = CASES[op_type], core_table().resolve("", op_type, 23)
    node = Node(op_type=op_type, opset=23, attributes={"training_mode": 1} if op_type == "BatchNormalization" else {})
    outputs = op.forward(node, *inputs)
    grads = [np.ones_like(outputs[0])]
    wanted = [True] * len(inputs)
    host = op.vjp(node, inputs, outputs, grads, wanted)
    found = op.vjp(node, *(list(map(wrapped, values)) for values in (inputs, outputs, grads)), wanted)
    for exact, got in zip(host, found, strict=True):
        if exact is not None:
            assert isinstance(got, Foreign)
            np.testing.assert_allclose(got.held, exact, rtol=1e-12, atol=1e-12)  # sums may come in another order


def test_a_whole_network_stays_on_its_device():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (double[3, 4] x, double[4, 5] w, double[5] b) => (double[3, 5] y) {
        m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = Softmax(r)
    }"""
    plan = compile_plan(ir.from_proto(onnx.parser.parse_model(text)))
    feeds = {"x": DRAW((3, 4)), "w": DRAW((4, 5)), "b": DRAW((5,))}
    _, pull = Tape(plan, ["w", "b"]).forward(feeds)
    host = pull({"y": np.eye(3, 5)})
    outputs, pull = Tape(plan, ["w", "b"]).forward({name: Foreign(x) for name, x in feeds.items()})
    assert isinstance(outputs["y"], Foreign)
    for name, got in pull({"y": Foreign(np.eye(3, 5))}).items():
        np.testing.assert_array_equal(got.held, host[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [5, 70_000])
def test_an_update_stays_on_its_device(name, size):
    start, grads = DRAW((2, size)), [DRAW((2, size)) for _ in range(2)]

    def updated(values, given):
        parameters = Parameters({"w": values}, frozenset("w"), {}, (), {})
        optimizer, scale = Optimizer(name=name, decay=0.1), LossScale()
        for g in given:
            optimizer.update(parameters, clip(scale.unscaled({"w": g}), 1.0), 0.1)
        return parameters.values["w"]

    found = updated(wrapped(start.copy()), map(wrapped, grads))
    assert isinstance(found, Foreign)
    np.testing.assert_array_equal(found.held, updated(start.copy(), grads))
