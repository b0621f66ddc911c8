"""What the tests of quantization share: networks written as ONNX text, and ways to quantize and to run them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pumice.data import open_dataset
from pumice.ledger import Ledger
from pumice.measure import pick_runtime
from pumice.model import check, infer_shapes, nodes
from pumice.quantize.context import QuantizeContext
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.quantize.placement import find_layers, place
from pumice.quantize.target import Target


def build(text, opset=21, **weights):
    """The model of a graph in ONNX text. A weight is an array, or a shape to fill with He-normal numbers.

    The node that writes `c1` is called `at_c1`, so that a test can name it.
    """
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    for name, weight in weights.items():
        array = filled(rng, weight) if isinstance(weight, tuple) else np.asarray(weight)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = infer_shapes(ir.from_proto(proto))
    for node in nodes(model):
        node.name = f"at_{node.outputs[0].name}"
    return model


def filled(rng, shape):
    scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def normal(*shape, count=8, seed=1, name="x"):
    """Feeds of standard normal numbers."""
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def context(model, feeds, target="ort-cpu", **settings):
    """What a quantize step would give a quantizer."""
    profile = target if isinstance(target, Target) else Target.named(target)
    data = None if feeds is None else open_dataset(feeds, model)
    return QuantizeContext(calibration=data, runtime=pick_runtime(), target=profile, **settings)


def quantized(model, feeds, target="ort-cpu", exclude=(), **scheme):
    """(quantized model, ledger); the model is checked and loads in ONNX Runtime."""
    around = context(model, feeds, target, exclude=exclude)
    result = quantize_layers(model, Scheme(**scheme), around)
    check(result)
    session(result)
    return result, around.ledger


def session(model, *, optimize=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(model, feeds, *, optimize=True):
    """First output for each of the feeds, stacked."""
    opened = session(model, optimize=optimize)
    return np.concatenate([opened.run(None, feed)[0].reshape(1, -1) for feed in feeds])


def noise_db(exact, found):
    """Signal-to-noise ratio."""
    return 10 * np.log10(np.sum(exact.astype(np.float64) ** 2) / max(np.sum((exact - found) ** 2.0), 1e-30))


def placed(model, target="ort-cpu", modes=("dynamic", "static"), excluded=lambda node: None):
    """(placement, ledger) of a model."""
    profile, ledger = target if isinstance(target, Target) else Target.named(target), Ledger()
    layers = find_layers(
        model,
        profile,
        ledger,
        excluded=excluded,
        choose_mode=lambda known: next((mode for mode in known if mode in modes), "weight-only"),
        smallest=1,
    )
    return place(model, profile, layers, excluded), ledger


class Toolbox:
    """The functions above, for tests."""

    build = staticmethod(build)
    normal = staticmethod(normal)
    context = staticmethod(context)
    quantized = staticmethod(quantized)
    session = staticmethod(session)
    outputs = staticmethod(outputs)
    noise_db = staticmethod(noise_db)
    placed = staticmethod(placed)


@pytest.fixture(scope="session")
def lab():
    return Toolbox
