"""Training in 16 bits on a GPU: masters of 32 bits, and losses close to those of 32-bit weights."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.loop import Trainer
from pumice.train.parameters import Parameters
from pumice_cuda.placing import OnDevice

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
agraph (KIND[N, 24] x) => (KIND[N, 3] y) <KIND[24, 40] w, KIND[40] b, KIND[40, 3] v> {
    p = MatMul(x, w)
    a = Add(p, b)
    h = Gelu(a)
    y = MatMul(h, v)
}"""
KINDS = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def trained(kind):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH.replace("KIND", kind))
    for info in proto.graph.value_info:
        value = 0.3 * rng.normal(size=[d.dim_value for d in info.type.tensor_type.shape.dim])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(KINDS[kind]), info.name))
    del proto.graph.value_info[:]
    model = ir.from_proto(proto)
    x = rng.normal(size=(256, 24)).astype(np.float32)
    samples = {"x": x.astype(KINDS[kind]), "labels": (x.sum(axis=1) > 0).astype(np.int64)}
    placement, settings = OnDevice(), Train(epochs=6, batch=32, lr=0.01)
    plan = trainable_plan(model, placement=placement)
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    feeder = Feeder(open_dataset(samples, model), settings.batch)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, feeder, settings, placement=placement).fit()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_losses_are_close_to_those_of_32_bits(kind):
    half, whole = trained(kind), trained("float")
    assert half.values["w"].dtype == KINDS[kind]
    assert half.history.losses[-1] < 0.5 * half.history.losses[0]
    np.testing.assert_allclose(half.history.losses, whole.history.losses, rtol=0.1, atol=0.02)
