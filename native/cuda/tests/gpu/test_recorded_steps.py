"""Training steps that are replayed give the bits of steps that run launch by launch."""

import attrs
import cupy
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.autograd import Tape
from pumice.data import open_dataset
from pumice.errors import PumiceError
from pumice.plan import compile_plan
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.loop import Trainer
from pumice.train.parameters import Parameters
from pumice_cuda.placing import OnDevice
from pumice_cuda.training import STEPS

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
agraph (int64[N, 12] x) => (KIND[N, 3] y)
<KIND[50, 16] words, KIND[16] scale, KIND[16] shift, KIND[16, 16] q, KIND[16, 16] k, KIND[16] b, KIND[16, 3] v,
 int64[1] tokens = {1}> {
    e = Gather(words, x)
    n = LayerNormalization(e, scale, shift)
    left = MatMul(n, q)
    right = MatMul(n, k)
    turned = Transpose<perm = [0, 2, 1]>(right)
    scores = MatMul(left, turned)
    shares = Softmax(scores)
    read = MatMul(shares, n)
    added = Add(read, b)
    h = Gelu(added)
    mean = ReduceMean<keepdims = 0>(h, tokens)
    y = MatMul(mean, v)
}"""
KINDS = {"float": np.float32, "float16": np.float16}


def text(kind):
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(TEXT.replace("KIND", kind))
    for info in proto.graph.value_info:
        value = 0.3 * rng.normal(size=[d.dim_value for d in info.type.tensor_type.shape.dim])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(KINDS[kind]), info.name))
    del proto.graph.value_info[:]
    x = rng.integers(0, 50, (84, 12))
    return ir.from_proto(proto), {"x": x, "labels": (x.sum(axis=1) % 3).astype(np.int64)}, "y"


def pictures():
    x = np.random.default_rng(0).normal(size=(84, 3, 8, 8)).astype(np.float32)
    return tiny_cnn(), {"x": x, "labels": (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64)}, "logits"


NETWORKS = {
    "pictures": pictures, "text of float32": lambda: text("float"), "text of float16": lambda: text("float16"),
}  # fmt: skip


def trainer(make, records, **knobs):
    model, samples, _ = make()
    placement, settings = OnDevice(records=records), Train(**{"epochs": 3, "batch": 16, "lr": 0.01, **knobs})
    plan = trainable_plan(model, placement=placement)
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    feeder = Feeder(open_dataset(samples, model), settings.batch)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, feeder, settings, placement=placement)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("knobs", [{}, {"memory": 0.3}, {"optimizer": "sgd", "ema": 0.9}, {"clip": 0.1}], ids=str)
def test_losses_and_weights_are_the_same(name, knobs):
    recorded, plain = (trainer(NETWORKS[name], records, **knobs) for records in (True, False))
    found, wanted = recorded.fit(), plain.fit()
    assert recorded.tape.recorded_bytes > 0
    assert not hasattr(plain.tape, "recorded_bytes")
    assert found.history.losses == wanted.history.losses
    assert found.values.keys() == wanted.values.keys()
    for key, value in wanted.values.items():
        np.testing.assert_array_equal(found.values[key], value, err_msg=key)


@pytest.fixture
def passes():
    """A tape of two outputs that is recorded, one that is not, and inputs."""
    model, samples, output = pictures()
    plan = compile_plan(model, placement=(placement := OnDevice()))
    values = {name: placement.bring(v) for name, v in Parameters.of(compile_plan(model)).values.items()}
    plain = Tape(plan, values, training=True)
    feeds = [{"x": cupy.asarray(samples["x"][i : i + 16]), **values} for i in range(0, 64, 16)]
    recorded = placement.tape(plain)
    dy = cupy.asarray(np.random.default_rng(1).normal(size=(16, *plan.run(feeds[0])[output].shape[1:])).astype("f"))
    for _ in range(STEPS):
        recorded.forward(feeds[0])[1]({output: dy})
    return recorded, plain, feeds, {output: dy}


def step(tape, feeds, grads):
    outputs, pull = tape.forward(feeds)
    return {**outputs, **pull(grads), **{f"new {name}": y for name, y in pull.updates.items()}}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(cupy.asnumpy(found[name]), cupy.asnumpy(value), err_msg=name)


def test_what_is_given_stays_while_later_steps_come(passes):
    recorded, plain, feeds, grads = passes
    found = [step(recorded, each, grads) for each in feeds]
    assert recorded.recorded_bytes > 0
    for each, have in zip(feeds, found, strict=True):
        same(have, step(plain, each, grads))


def test_parameters_that_change_in_place_are_read_anew(passes):
    recorded, plain, feeds, grads = passes
    step(recorded, feeds[0], grads)
    for name in recorded.wrt:
        feeds[1][name] *= 0.5
    same(step(recorded, feeds[1], grads), step(plain, feeds[1], grads))
    assert recorded.recorded_bytes > 0


def test_parameters_that_lie_elsewhere_end_the_recording(passes):
    recorded, plain, feeds, grads = passes
    step(recorded, feeds[0], grads)
    moved = {name: x.copy() for name, x in feeds[1].items()}
    same(step(recorded, moved, grads), step(plain, moved, grads))
    assert recorded.recorded_bytes == 0


def test_other_shapes_run_beside_it(passes):
    recorded, plain, feeds, grads = passes
    step(recorded, feeds[0], grads)
    smaller = {**feeds[1], "x": feeds[1]["x"][:5]}
    few = {name: dy[:5] for name, dy in grads.items()}
    same(step(recorded, smaller, few), step(plain, smaller, few))
    same(step(recorded, feeds[2], grads), step(plain, feeds[2], grads))
    assert recorded.recorded_bytes > 0


def test_a_pass_backward_that_comes_too_late_is_refused(passes):
    recorded, _, feeds, grads = passes
    _, late = recorded.forward(feeds[0])
    recorded.forward(feeds[1])
    with pytest.raises(PumiceError, match="the next step of this tape has begun"):
        late(grads)


def test_random_draws_are_not_recorded(passes):
    _, plain, *_ = passes
    drawing = attrs.evolve(plain.steps[0], node=attrs.evolve(plain.steps[0].node, op_type="Dropout"))
    tape = OnDevice().tape(plain)
    tape.steps = (drawing, *plain.steps[1:])
    fresh = OnDevice().tape(tape)
    assert "draws random numbers" in fresh._refusal


def test_a_step_that_takes_more_than_half_of_the_memory_is_not_recorded(passes, caplog):
    recorded, plain, feeds, grads = passes
    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=pool.used_bytes() + (1 << 17))
    try:
        with caplog.at_level("INFO", logger="pumice.cuda"):
            step(recorded, feeds[0], grads)
    except MemoryError:
        pass  # the step itself did not fit either
    finally:
        pool.set_limit(size=0)
    assert recorded.recorded_bytes == 0
    assert "a step takes more than half of the memory that is free" in caplog.text
    same(step(recorded, feeds[1], grads), step(plain, feeds[1], grads))
