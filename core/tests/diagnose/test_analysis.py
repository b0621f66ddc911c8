"""Analysis: counts are the operators' own, and the advice follows from them."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from pumice.diagnose import analyse
from pumice.model import fingerprint
from pumice.testing.models import tiny_cnn, weightless


def model_of(text, **weights):
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    return ir.from_proto(proto)


def advice_of(model, **extra):
    return "\n".join(analyse(model, **extra).advice)


def test_counts_of_a_small_network():
    found = analyse(tiny_cnn())
    macs = {cost.op: 0 for cost in found.costs}
    for cost in found.costs:
        macs[cost.op] += cost.macs
    assert macs["Conv"] == 8 * 8 * (16 * 3 * 9 + 16 * 16 * 9)
    assert macs["Gemm"] == 16 * 5
    assert found.parameters == sum((16 * 3 * 9, 16, 16 * 16 * 9, 16, 16 * 5, 5))
    assert found.weight_bytes == 4 * found.parameters
    assert found.operators["Conv"] == 2
    assert found.dynamic_axes == ("x:0",)
    assert found.inputs == {"x": "FLOAT[N,3,8,8]"}
    assert "'x' count as 1" in found.assumed


def test_feeds_give_the_shapes():
    feeds = {"x": np.zeros((4, 3, 8, 8), np.float32)}
    assert analyse(tiny_cnn(), feeds).macs >= 4 * analyse(tiny_cnn()).macs
    assert analyse(tiny_cnn(), feeds).assumed == ""


def test_the_model_is_left_as_it_was():
    model = tiny_cnn()
    before = fingerprint(model)
    analyse(model)
    assert fingerprint(model) == before


def test_the_profile_of_the_runtime_is_kept_slowest_first():
    class Timed:
        def profile(self, model, feeds):
            return [("a", "Relu", 1.0), ("b", "Conv", 9.0), ("c", "Add", 0.5), ("d", "Add", 0.5)]

    found = analyse(tiny_cnn(), {"x": np.zeros((1, 3, 8, 8), np.float32)}, Timed())
    assert [time.node for time in found.times] == ["b", "a", "c", "d"]
    assert found.times[0].seconds == pytest.approx(9e-6)
    assert "'b' (Conv) take 82% of the time" in "\n".join(found.advice)


def test_layers_with_integer_kernels_are_worth_quantizing():
    said = advice_of(tiny_cnn())
    assert "2 Conv layers and 1 Gemm layer hold" in said
    assert "smaller)" in said


def test_nothing_is_advised_where_nothing_is_to_be_had():
    assert analyse(weightless()).advice == ()


def test_embeddings_are_told_apart_from_arithmetic():
    text = "g (int64[N,4] ids) => (float[N,4,64] y) { y = Gather (table, ids) }"
    assert "Embedding tables: 'n0' hold 100%" in advice_of(model_of(text, table=np.ones((100, 64), np.float32)))


@pytest.mark.parametrize(
    ("kind", "gates", "said"), [("LSTM", 4, "compute with 8-bit weights"), ("GRU", 3, "expect little")]
)
def test_recurrent_layers_are_promised_what_the_runtime_has_kernels_for(kind, gates, said):
    weights = {"W": np.ones((1, 8 * gates, 8), np.float32), "R": np.ones((1, 8 * gates, 8), np.float32)}
    text = f"g (float[T,N,8] x) => (float[T,1,N,8] y) {{ y = {kind} <hidden_size=8> (x, W, R) }}"
    advice = advice_of(model_of(text, **weights))
    assert "Recurrent layers: 'n0' hold 100%" in advice
    assert said in advice


def test_what_pruning_would_leave_is_worked_out():
    def weights(channels):  # two convolutions around a sum, and a layer of 5 outputs
        return channels * 3 * 9 + channels + channels * channels * 9 + channels + channels * 5 + 5

    told = advice_of(tiny_cnn())
    assert "16 channels in 1 group can go; without 30% of each" in told
    assert f"{weights(12) / weights(16):.0%} of the bytes and 59% of the multiply-accumulates are left" in told


def test_weights_that_bear_few_bits_worse_than_the_others_are_named():
    weights = {f"w{i}": np.random.default_rng(i).standard_normal((256, 256)).astype(np.float32) for i in range(5)}
    layers = "".join(f"h{i + 1} = MatMul(h{i}, w{i}) " for i in range(5))
    text = f"g (float[1, 256] h0) => (float[1, 256] h5) {{ {layers} }}"
    assert "Sensitivity" not in advice_of(model_of(text, **weights))
    weights["w3"][0] = 16.0  # of every output one weight needs a step that is too coarse for the others
    assert "Sensitivity: rounded to 4 bits, the weights of 'n3' (" in advice_of(model_of(text, **weights))


def test_dead_filters_are_found():
    weights = np.ones((8, 4), np.float32)
    weights[[2, 5]] = 0
    text = "g (float[N,4] x) => (float[N,8] y) { y = Gemm <transB=1> (x, w) }"
    assert "2 filters of 'n0' are all zero" in advice_of(model_of(text, w=weights))


def test_float64_weights_are_pointed_out():
    text = "g (double[N,4] x) => (double[N,8] y) { y = MatMul (x, w) }"
    assert "export the model in float32 first" in advice_of(model_of(text, w=np.ones((4, 8))))


def test_a_quantized_model_is_sent_back_to_its_original():
    text = "g (float[N,4] x) => (float[N,4] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    assert "quantized already" in advice_of(model_of(text, s=np.float32(0.1), z=np.uint8(0)))


def test_an_operator_without_a_cost_counts_nothing():
    text = "g (float[N,4] x) => (int64[K,2] y) { t = NonZero (x) y = Transpose (t) }"
    assert analyse(model_of(text)).macs == 0
