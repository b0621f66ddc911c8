"""Training on a GPU: no step copies, and what memory does not hold trains with checkpoints."""

import gc

import cupy
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from cupy._core import syncdetect

from pumice.autograd import Profile
from pumice.data import open_dataset
from pumice.errors import PumiceError
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.testing.models import tiny_cnn
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.loop import Trainer
from pumice.train.parameters import Parameters
from pumice_cuda.placing import OnDevice
from pumice_cuda.transfers import counting, on_device

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
TRANSFORMER = """agraph (int64[N, 8] x) => (KIND[N, 3] y) <
    KIND[20, 16] words, KIND[16] scale, KIND[16] bias, KIND[16, 16] q, KIND[16, 16] k, KIND[16, 16] v, KIND[16, 64] up,
    KIND[64] up_bias, KIND[64, 16] down, KIND[16, 3] head,
    int64[4] split = {0, 0, 2, 8}, int64[3] merge = {0, 0, 16}, int64[1] tokens = {1}
> {
    e = Gather(words, x)
    n = LayerNormalization<axis = -1>(e, scale, bias)
    q1 = MatMul(n, q)
    q2 = Reshape(q1, split)
    q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
    k1 = MatMul(n, k)
    k2 = Reshape(k1, split)
    k3 = Transpose<perm = [0, 2, 3, 1]>(k2)
    v1 = MatMul(n, v)
    v2 = Reshape(v1, split)
    v3 = Transpose<perm = [0, 2, 1, 3]>(v2)
    scores = MatMul(q3, k3)
    shares = Softmax<axis = -1>(scores)
    read = MatMul(shares, v3)
    turned = Transpose<perm = [0, 2, 1, 3]>(read)
    merged = Reshape(turned, merge)
    sum1 = Add(e, merged)
    wide = MatMul(sum1, up)
    biased = Add(wide, up_bias)
    active = Gelu(biased)
    narrow = MatMul(active, down)
    sum2 = Add(sum1, narrow)
    mean = ReduceMean<keepdims = 0>(sum2, tokens)
    y = MatMul(mean, head)
}"""
DEPTHWISE = """agraph (float[N, 8, 8, 8] x) => (float[N, 3] y) <float[8, 1, 3, 3] w, float[8] b, float[8, 3] v> {
    c = Conv<group = 8, pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, v)
}"""
SAMPLES, WIDTH, LAYERS = 16384, 64, 24
"""Of the network that memory does not hold: each layer keeps 8 MB."""
PLACE, PRESSED = 0.6, 3
"""The share of its residuals that there is room for; how many times less of them are kept then."""


def filled(text):
    """The graph, with drawn weights where it declares some without a value."""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(HEADER + text)
    for info in proto.graph.value_info:
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        value = 0.2 * rng.standard_normal([d.dim_value for d in info.type.tensor_type.shape.dim])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(kind), info.name))
    del proto.graph.value_info[:]
    return ir.from_proto(proto)


def chain():
    """Products and GELU one after the other: as many equal activations as there are of both."""
    weights = "".join(f", float[{WIDTH}, {WIDTH}] w{i}" for i in range(LAYERS))
    layers = "".join(f"p{i} = MatMul(h{i}, w{i}) h{i + 1} = Gelu(p{i}) " for i in range(LAYERS))
    return filled(
        f"agraph (float[N, {WIDTH}] x) => (float[N, 3] y) <float[{WIDTH}, 3] v{weights}> "
        f"{{ h0 = Identity(x) {layers} y = MatMul(h{LAYERS}, v) }}"
    )


def trainer(model, x, **knobs):
    """Its labels are 0 and 1."""
    settings, placement = Train(**{"epochs": 2, "batch": 16, "lr": 0.01, **knobs}), OnDevice()
    plan = trainable_plan(model, placement=placement)
    loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
    samples = open_dataset({"x": x, "labels": np.arange(len(x)) % 2}, model)
    feeder = Feeder(samples, settings.batch)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, feeder, settings, placement=placement), placement


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copies(monkeypatch):
    """The ways in which CuPy copied between the CPU and the GPU, or waited for one, one after the other.

    CuPy's own code goes through the same doors: what is made of NumPy's arrays, lists and pointers is put into pinned
    memory first, and every look into an array calls `get`.
    """
    found = []

    def noting(name, act):
        def noted(*arguments, **options):
            found.append(name)
            return act(*arguments, **options)

        return noted

    for name in ("get", "set"):
        monkeypatch.setattr(cupy.ndarray, name, noting(name, getattr(cupy.ndarray, name)), raising=False)
    monkeypatch.setattr(syncdetect, "_declare_synchronize", noting("wait", syncdetect._declare_synchronize))
    pinned = cupy.get_default_pinned_memory_pool().malloc
    cupy.cuda.set_pinned_memory_allocator(noting("pinned", pinned))
    yield found
    cupy.cuda.set_pinned_memory_allocator(pinned)


WAYS = {
    "asarray": lambda x: cupy.asarray(np.ones(3)),
    "array": lambda x: cupy.array([1.0, 2.0]),
    "set": lambda x: x.set(np.ones(())),
    "index": lambda x: cupy.zeros(3)[[0, 2]],
    "asnumpy": cupy.asnumpy,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "float": float,
    "int": int,
    "bool": bool,
    "synchronize": lambda x: cupy.cuda.Device().synchronize(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_copy_goes_unseen(copies, way):
    x = cupy.zeros(())
    copies.clear()
    way(x)
    assert copies


MODELS = {
    "cnn": (tiny_cnn, lambda rng: rng.standard_normal((96, 3, 8, 8)).astype(np.float32)),
    "depthwise": (lambda: filled(DEPTHWISE), lambda rng: rng.standard_normal((96, 8, 8, 8)).astype(np.float32)),
    "transformer": (lambda: filled(TRANSFORMER.replace("KIND", "float")), lambda rng: rng.integers(0, 20, (96, 8))),
    "half": (lambda: filled(TRANSFORMER.replace("KIND", "float16")), lambda rng: rng.integers(0, 20, (96, 8))),
}


@pytest.mark.parametrize("knobs", [{}, {"optimizer": "sgd"}, {"clip": 0.1, "ema": 0.9}], ids=["adamw", "sgd", "clip"])
@pytest.mark.parametrize(("model", "draw"), MODELS.values(), ids=MODELS)
def test_nothing_is_copied_and_nothing_looked_into_inside_a_step(copies, model, draw, knobs):
    training, placement = trainer(model(), draw(np.random.default_rng(0)), **knobs)
    seen = []
    for portions in training.feeder.epoch(0):
        brought = [training._brought(portion) for portion in portions]
        copies.clear()
        with counting() as moved:
            loss = training.step(brought)
        seen.append((list(copies), moved.into, moved.out))
        assert on_device(loss)
    assert seen[1:] == [([], 0, 0)] * 5  # the first step fills what is remembered; one of the others is recorded
    assert not placement.fallen


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    """CuPy's memory, whose limit is taken away in the end."""
    pool = cupy.get_default_memory_pool()
    yield pool
    pool.set_limit(size=0)


def emptied(pool):
    gc.collect()
    pool.free_all_blocks()


def test_a_network_that_memory_does_not_hold_trains_with_checkpoints(pool):
    model, x = chain(), np.random.default_rng(0).standard_normal((SAMPLES, WIDTH)).astype(np.float32)
    knobs = {"batch": SAMPLES, "lr": 1e-3}
    training, _ = trainer(model, x, **knobs)
    whole = training.fit()
    feeds = {"x": cupy.asarray(x), **training.parameters.fed()}
    residuals = Profile.of(training.tape, feeds).peak(())
    del training, feeds
    emptied(pool)
    pool.set_limit(size=round(pool.used_bytes() + PLACE * residuals))
    with pytest.raises(PumiceError, match=f"the memory does not suffice to train on {SAMPLES} samples at once"):
        trainer(model, x, **knobs)[0].fit()
    emptied(pool)
    found = trainer(model, x, memory=residuals / PRESSED / 1e6, **knobs)[0].fit()
    np.testing.assert_allclose(found.history.losses, whole.history.losses, rtol=1e-4)
