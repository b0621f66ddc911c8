"""Hard swish between integers becomes a sum and a product of integers, exactly where that is possible."""

import attrs
import numpy as np
import pytest

from pumice.measure import pick_runtime
from pumice.quantize.simulation import compare_integers
from pumice.quantize.target import Target

NET = "(float[N,3,8,8] x) => (float[N,4,4,4] y) { a = Conv (x, w)  s = HardSwish (a)  y = Conv (s, v) }"
WEIGHTS = {"w": (8, 3, 3, 3), "v": (4, 8, 3, 3)}
LARGE = 8.0
PLAIN = attrs.evolve(Target.named("ort-cpu"), channel_scales="none")


def times(gain, lab):
    return [{"x": gain * feed["x"]} for feed in lab.normal(2, 3, 8, 8)]


def test_onnxruntime_computes_it_with_integers_that_stay_close(lab):
    model, feeds = lab.build(NET, **WEIGHTS), times(LARGE, lab)
    result, ledger = lab.quantized(model, feeds, PLAIN)
    found = pick_runtime("ort").optimized_ops(result)
    assert {kind: found[kind] for kind in ("QLinearConv", "QLinearAdd", "QLinearMul", "HardSigmoid")} == {
        "QLinearConv": 2, "QLinearAdd": 1, "QLinearMul": 1, "HardSigmoid": 0,
    }  # fmt: skip
    assert [entry.node for entry in ledger.of("quantize", "applied")].count("at_s") == 1
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 32
    assert not any(layer.steps for layer in compare_integers(result, feeds, pick_runtime("ort")))


def test_its_ends_are_exact(lab):
    """From 3 on it hands its input on, up to -3 it is zero."""
    identity = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    text = "(float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Conv (x, w)  s = HardSwish (a)  y = Conv (s, v) }"
    x = np.where(np.random.default_rng(0).random((1, 3, 8, 8)) < 0.5, -5.0, 16.0).astype(np.float32)
    model, feeds = lab.build(text, w=identity, v=identity), [{"x": x}]
    result, _ = lab.quantized(model, feeds, PLAIN, smallest=1)
    np.testing.assert_allclose(lab.outputs(result, feeds)[0], np.maximum(x, 0).ravel(), atol=0.1)


@pytest.mark.parametrize(
    ("net", "target", "gain"),
    [
        (NET.replace("y)", "y, float[N,8,6,6] s)"), PLAIN, LARGE),  # somebody reads the real number
        (NET.replace("(s, v)", "(t, v)").replace("  y", "  t = Neg (s)  y"), PLAIN, LARGE),
        (NET.replace("HardSwish (a)", "HardSwish (n)").replace("  s", "  n = Neg (a)  s"), PLAIN, LARGE),
        (NET, Target.named("openvino"), LARGE),
        (NET, PLAIN, 1.0),  # its own rounding would be too coarse
    ],
)
def test_elsewhere_it_stays_what_it_is(lab, net, target, gain):
    result, _ = lab.quantized(lab.build(net, **WEIGHTS), times(gain, lab), target)
    assert [node.op_type for node in result.graph if node.name == "at_s"] == ["HardSwish"]
