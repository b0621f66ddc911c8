"""Training on a GPU that is not there: the same weights as on the CPU, and nothing copied but what must be."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.train.application import placement_of, trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.loop import Trainer
from pumice.train.parameters import Parameters
from pumice_cuda.placing import OnDevice
from pumice_cuda.transfers import counting, on_device

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
agraph (KIND[N, 1, 4, 4] x) => (KIND[N, 3] y)
<KIND[6, 1, 3, 3] w, KIND[6] scale, KIND[6] shift, KIND[6] mean, KIND[6] var, KIND[24, 3] v> {
    c = Conv(x, w)
    n = BatchNormalization(c, scale, shift, mean, var)
    r = Relu(n)
    f = Flatten(r)
    y = MatMul(f, v)
}"""


@pytest.fixture
def network(rng):
    def build(kind=np.float32):
        proto = onnx.parser.parse_model(GRAPH.replace("KIND", np.dtype(kind).name.replace("32", "")))
        for info in proto.graph.value_info:
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            value = rng.normal(size=shape) if len(shape) > 1 else np.ones(shape)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(kind), info.name))
        del proto.graph.value_info[:]
        return ir.from_proto(proto)

    return build


@pytest.fixture
def samples(rng):
    x = rng.normal(size=(64, 1, 4, 4)).astype(np.float32)
    return {"x": x, "labels": (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64)}


def trainer(model, samples, placement=None, **knobs):
    settings = Train(**{"epochs": 2, "batch": 16, "lr": 0.01, **knobs})
    plan = trainable_plan(model, placement=placement)
    samples = {**samples, "x": samples["x"].astype(model.graph.inputs[0].dtype.numpy())}
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    feeder = Feeder(open_dataset(samples, model), settings.batch)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, feeder, settings, placement=placement)


@pytest.mark.parametrize("knobs", [{}, {"optimizer": "sgd"}, {"clip": 0.1, "ema": 0.9}, {"memory": 0.02}])
def test_the_gpu_trains_as_the_cpu_does(gpu, network, samples, knobs):
    model = network()
    here, there = trainer(model, samples, **knobs).fit(), trainer(model, samples, OnDevice(), **knobs).fit()
    np.testing.assert_allclose(there.history.losses, here.history.losses, rtol=1e-4)
    for name, value in here.values.items():
        assert isinstance(there.values[name], np.ndarray)
        np.testing.assert_allclose(there.values[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("knobs", [{}, {"optimizer": "sgd"}, {"clip": 0.1, "ema": 0.9}])
def test_nothing_is_copied_and_nothing_waited_for_inside_a_step(gpu, network, samples, kind, knobs):
    training = trainer(network(kind), samples, OnDevice(), **knobs)
    for count, portions in enumerate(training.feeder.epoch(0)):
        brought = [training._brought(portion) for portion in portions]
        gpu.looks.clear()
        with counting() as moved:
            loss = training.step(brought)
        assert on_device(loss)
        if count:  # the first step fills what is remembered
            assert (moved.into, moved.out, gpu.looks) == (0, 0, [])


def test_weights_of_16_bits_have_masters_of_32(gpu, network, samples):
    training = trainer(network(np.float16), samples, OnDevice())
    fit = training.fit()
    assert {value.dtype for value in training.parameters.values.values()} == {np.dtype(np.float32)}
    assert fit.values["w"].dtype == np.float16
    assert fit.history.losses[-1] < fit.history.losses[0]


def test_gradients_that_overflow_leave_no_trace_but_a_smaller_scale(gpu, network, samples):
    training = trainer(network(np.float16), samples, OnDevice(), optimizer="sgd", momentum=0.0, weight_decay=0.0)
    training._scale.scale = 2.0**60
    before = {name: value._array.copy() for name, value in training.parameters.values.items()}
    (portions, *_) = training.feeder.epoch(0)
    training.step([training._brought(portion) for portion in portions])
    assert float(training._scale.scale) == 2.0**59
    assert int(training._scale.left_out) == 1
    for name, value in training.parameters.values.items():
        np.testing.assert_array_equal(value._array, before[name])


def test_a_wrong_label_shows_as_a_loss_that_is_not_finite(gpu, network, samples):
    samples["labels"][:] = 7
    with pytest.raises(Exception, match="the loss became nan at step 1"):
        trainer(network(), samples, OnDevice()).fit()


def test_a_snapshot_of_the_gpu_goes_on_in_the_same_numbers(gpu, network, samples, tmp_path):
    model, whole = network(), None
    knobs = {"snapshot": str(tmp_path / "state"), "epochs": 3}
    whole = trainer(model, samples, OnDevice(), epochs=3).fit()
    first = trainer(model, samples, OnDevice(), **knobs)
    first._epoch(lambda: None)
    resumed = trainer(model, samples, OnDevice(), **knobs).fit()
    np.testing.assert_array_equal(resumed.history.losses, whole.history.losses)
    for name, value in whole.values.items():
        np.testing.assert_array_equal(resumed.values[name], value)


def test_without_a_gpu_training_goes_on_on_the_cpu_with_one_line(monkeypatch, caplog):
    from pumice_cuda import device

    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem="no NVIDIA driver is installed"))
    assert placement_of("cuda") is None
    assert caplog.messages == ["training on the CPU: no NVIDIA driver is installed"]
