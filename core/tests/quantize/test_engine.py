import resource
import tracemalloc

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.errors import DataError, ModelError
from pumice.model import constant, nodes
from pumice.quantize import rounding
from pumice.quantize.calibration import METHODS, Calibrator
from pumice.quantize.engine import Scheme, quantize_layers
from pumice.quantize.observation import Memory
from pumice.quantize.simulation import simulate
from pumice.testing.models import serialized

CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
NET = f"""(float[N,3,6,6] x) => (float[N,5] y) {{
    a = {CONV} (x, w, b)  r = Relu (a)  c = {CONV} (r, v)  t = Sigmoid (c)  p = GlobalAveragePool (t)
    f = Flatten (p)  y = Gemm <transB=1> (f, u, d) }}"""
WEIGHTS = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "u": (16, 8), "d": (16,)}
NET = NET.replace("float[N,5] y", "float[N,16] y")
PERCEPTRON = "(float[N,8] x) => (float[N,8] y) { h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v) }"


def reasons(ledger, verdict=None):
    return {entry.node: entry.reason for entry in ledger.of("quantize", verdict)}


# --- what the result depends on, and what not -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_how_the_data_is_batched_changes_no_bit(lab, method):
    model = lab.build(NET, **WEIGHTS)
    samples = np.concatenate([feed["x"] for feed in lab.normal(1, 3, 6, 6, count=128)])
    forms = [
        [{"x": row[None]} for row in samples],
        [{"x": samples[:64]}, {"x": samples[64:]}],
        [{"x": samples[:100]}, {"x": samples[100:]}],
        {"x": samples},
    ]
    scheme = {"calibrator": Calibrator(method=method)}
    one, *others = (serialized(lab.quantized(model, feeds, **scheme)[0]) for feeds in forms)
    assert all(other == one for other in others)


def test_a_limit_counts_rows_not_batches(lab):
    model = lab.build(PERCEPTRON, w=(8, 8), v=(8, 8))
    samples = lab.normal(64, 8, count=2)
    context = lab.context(model, samples, samples=70)
    assert sum(1 for _ in context.feeds()) == 70
    assert sum(1 for _ in context.feeds(10)) == 10


def test_labels_are_cut_with_their_rows(lab):
    model = lab.build(PERCEPTRON, w=(8, 8), v=(8, 8))
    feeds = [({"x": np.full((3, 8), n, np.float32)}, np.arange(3) + 3 * n) for n in range(2)]
    found = list(lab.context(model, feeds).samples_with_labels())
    assert [labels.tolist() for _, labels in found] == [[n] for n in range(6)]
    assert all(feed["x"].shape == (1, 8) for feed, _ in found)


def test_a_first_axis_that_is_time_is_not_cut(lab):
    model = lab.build("(float[time,8] x) => (float[time,8] y) { y = MatMul (x, w) }", w=(8, 8))
    assert next(lab.context(model, lab.normal(5, 8)).feeds())["x"].shape == (5, 8)


def test_two_runs_give_the_same_bytes(lab):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    assert len({serialized(lab.quantized(model, feeds)[0]) for _ in range(2)}) == 1


def test_working_in_portions_changes_no_bit(lab, monkeypatch):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    whole = serialized(lab.quantized(model, feeds)[0])
    monkeypatch.setattr(rounding, "PORTION", 1)
    assert serialized(lab.quantized(model, feeds)[0]) == whole


@pytest.mark.parametrize("before", [{}, {"draft": True}])
def test_what_is_recalled_changes_no_bit(lab, before):
    model, context = lab.build(NET, **WEIGHTS), lab.context(lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6))
    without = {"kept": {"at_c": "not this one"}}
    fresh = serialized(quantize_layers(model, Scheme(), attrs.evolve(context, recalled={}, **without)))
    quantize_layers(model, Scheme(), attrs.evolve(context, **before))
    quantize_layers(model, Scheme(), attrs.evolve(context, **before, **without))
    assert serialized(quantize_layers(model, Scheme(), attrs.evolve(context, **without))) == fresh


def test_an_attempt_with_fewer_layers_rounds_without_reading_the_data_again(lab):
    model, scheme = lab.build(NET, **WEIGHTS), Scheme(correct_bias=False)
    context = lab.context(model, lab.normal(1, 3, 6, 6))
    quantize_layers(model, scheme, context)
    quantize_layers(model, scheme, attrs.evolve(context, calibration=None, kept={"at_y": "not this one"}))


def test_a_draft_rounds_to_the_nearest_integer(lab):
    model = lab.build(NET, **WEIGHTS)
    context = lab.context(model, lab.normal(1, 3, 6, 6), draft=True)
    nearest = lab.quantized(model, lab.normal(1, 3, 6, 6), compensate=False, correct_bias=False)[0]
    assert serialized(quantize_layers(model, Scheme(), context)) == serialized(nearest)


def test_a_hundred_thousand_samples_are_calibrated_in_bounded_memory_by_every_method(lab):
    model = lab.build("(float[N,4] x) => (float[N,32] y) { y = MatMul (x, w) }", w=(4, 32))
    count, grown, passes = 100_000, [], []

    class Streamed:
        """A runtime that computes nothing: what grows must be pumice."""

        def open(self, model, **_):
            raise AssertionError("the input needs no run")

    def samples():
        row = np.ones((1, 4), np.float32)
        for n in range(count):
            if n == count - 10_000:
                tracemalloc.start()
            if n == count - 1:
                grown.append(tracemalloc.get_traced_memory()[0])
                tracemalloc.stop()
                passes.append(n)
            yield {"x": row * (n % 7)}

    context = lab.context(model, [{"x": np.ones((1, 4), np.float32)}], samples=count)
    context = attrs.evolve(context, calibration=open_dataset(samples, model), runtime=Streamed())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for method in METHODS:
        scheme = Scheme(calibrator=Calibrator(method=method), modes=("static",), smallest=1, correct_bias=False)
        quantize_layers(model, scheme, context)
    memory = context.recall(Memory)
    assert len(passes) == 2  # ranges, histograms: all methods read the same; the moments are made of fewer samples
    assert memory.samples == count
    assert memory.channels["x"].high[0] == 6.0
    assert [found.counts.sum() for found in memory.histograms.values()] == [4 * count]
    assert max(grown) < 1 << 18
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 15  # kB


# --- what is left, and why --------------------------------------------------------------------------------------------


def test_every_node_has_a_line(lab):
    model = lab.build(NET, **WEIGHTS)
    for modes in (("dynamic", "static"), ("static",), ("dynamic",), ()):
        _, ledger = lab.quantized(model, lab.normal(1, 3, 6, 6), modes=modes)
        assert sorted(entry.node for entry in ledger) == sorted(node.name for node in nodes(model))


def test_excluded_layers_stay_and_say_so(lab):
    model = lab.build(NET, **WEIGHTS)
    result, ledger = lab.quantized(model, lab.normal(1, 3, 6, 6), exclude=("at_[ac]",))
    assert set(reasons(ledger, "declined")) == {"at_a", "at_c"}
    assert "'at_[ac]'" in reasons(ledger)["at_a"]
    (layer,) = (node for node in result.graph if node.name == "at_a")
    assert layer.inputs[1].name == "w"


@pytest.mark.parametrize("names", [("", "b"), ("a", "a")])
def test_nodes_without_names_of_their_own_are_refused(lab, names):
    model = lab.build("(float[N,8] x) => (float[N,8] y) { h = MatMul (x, w)  y = MatMul (h, w) }", w=(8, 8))
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    with pytest.raises(ModelError, match="no unique names"):
        lab.quantized(model, lab.normal(1, 8))


def test_weights_of_constant_nodes_are_weights(lab):
    text = """(float[N,2] x) => (float[N,2] y) {
        w = Constant <value = float[2,2] {1.0, 2.0, 3.0, 4.0}> ()  y = MatMul (x, w) }"""
    result, _ = lab.quantized(lab.build(text), lab.normal(1, 2), smallest=1)
    assert {node.op_type for node in result.graph}.isdisjoint({"Constant", "MatMul"})


RECURRENT = """(float[T,N,8] x) => (float[T,1,N,16] h, float[N,8] y) {
    h, e = %s <hidden_size=16> (x, w, r)  s = ReduceSum <keepdims=0> (x, k)  y = MatMul (s, v) }"""


def recurrent_network(lab, kind):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    return lab.build(RECURRENT % kind, w=(1, 16 * gates, 8), r=(1, 16 * gates, 16), v=(8, 8), k=np.array([0]))


@pytest.mark.parametrize(
    ("kind", "wanted", "modes", "target"),
    [
        ("LSTM", "none", ("dynamic",), "ort-cpu"),
        ("LSTM", "kernel", ("static",), "ort-cpu"),
        ("LSTM", "kernel", ("dynamic",), "openvino"),
        ("LSTM", "stored", ("dynamic",), "tensorrt"),
        ("GRU", "kernel", ("dynamic",), "ort-cpu"),
        ("RNN", "kernel", ("dynamic",), "ort-cpu"),
    ],
)
def test_recurrent_layers_stay_in_floating_point_where_nothing_computes_them_otherwise(
    lab, kind, wanted, modes, target
):
    model, feeds = recurrent_network(lab, kind), lab.normal(5, 1, 8)
    result, ledger = lab.quantized(model, feeds, target, recurrent=wanted, modes=modes)
    assert "floating point" in reasons(ledger, "declined")["at_h"]
    assert next(node for node in result.graph if node.op_type == kind).inputs[1].dtype == ir.DataType.FLOAT


def test_an_lstm_takes_integers_whose_pairs_do_not_saturate_where_they_are_added_in_sixteen_bits(lab):
    model, feeds = recurrent_network(lab, "LSTM"), lab.normal(5, 1, 8)
    for target, most in (("ort-cpu", 127), ("ort-cpu-no-vnni", 63)):
        result, ledger = lab.quantized(model, feeds, target, recurrent="kernel")
        assert "while it runs" in reasons(ledger, "applied")["at_h"]
        layer = next(node for node in result.graph if node.op_type == "DynamicQuantizeLSTM")
        assert max(int(np.abs(constant(value).astype(int)).max()) for value in layer.inputs[1:3]) == most


def test_what_is_written_behind_an_lstm_makes_up_for_what_its_integers_shift(lab):
    """A bias is corrected by the layer's input as it will be: computed by the integer LSTM."""
    text = """(float[T,N,8] x) => (float[N,8] y) {
        h, e = LSTM <hidden_size=16> (x, w, r)  s = Squeeze (e, k)  y = Gemm (s, v, b) }"""
    model = lab.build(text, w=(1, 64, 8), r=(1, 64, 16), v=(16, 8), b=(8,), k=np.array([0]))
    feeds = lab.normal(5, 1, 8, count=64)
    exact = lab.outputs(model, feeds)
    shift = [
        np.abs((lab.outputs(lab.quantized(model, feeds, recurrent="kernel", correct_bias=correct)[0], feeds) - exact)
               .mean(axis=0)).max()
        for correct in (True, False)
    ]  # fmt: skip
    assert shift[0] < shift[1]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_models_of_other_precisions_are_left_with_the_reason(lab, kind):
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    model = lab.build(f"({kind}[N,8] x) => ({kind}[N,16] y) {{ y = MatMul (x, w) }}", w=np.ones((8, 16), dtype))
    context = lab.context(model, [{"x": np.ones((1, 8), dtype)}])
    result = quantize_layers(model, Scheme(), context)
    assert serialized(result) == serialized(model)
    assert "only float32 is quantized" in reasons(context.ledger, "declined")["at_y"]
    assert not context.ledger.of("quantize", "applied")


def test_bodies_of_control_flow_are_carried_untouched(lab):
    text = """(float[N,8] x, bool c) => (float[N,8] y) {
        h = MatMul (x, w)
        y = If (c) <then_branch = g1 () => (float[N,8] t) { t = MatMul (h, v) },
                    else_branch = g2 () => (float[N,8] e) { e = Relu (h) }>
    }"""
    model = lab.build(text, w=(8, 8), v=(8, 8))
    feeds = [{**feed, "c": np.array(bool(n % 2))} for n, feed in enumerate(lab.normal(1, 8))]
    result, ledger = lab.quantized(model, feeds)
    assert "control-flow body" in reasons(ledger, "skipped")["at_t"]
    branches = [attr.as_graph() for attr in next(n for n in result.graph if n.op_type == "If").attributes.values()]
    assert [[node.op_type for node in graph] for graph in branches] == [["MatMul"], ["Relu"]]
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


def test_a_body_reads_what_a_convolution_writes_as_integers(lab):
    text = f"""(float[N,8,6,6] x, bool c) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)
        y = If (c) <then_branch = g1 () => (float[N,8,6,6] t) {{ t = Abs (a) }},
                    else_branch = g2 () => (float[N,8,6,6] e) {{ e = Neg (a) }}>
    }}"""
    model = lab.build(text, w=(8, 8, 3, 3))
    feeds = [{**feed, "c": np.array(bool(n % 2))} for n, feed in enumerate(lab.normal(1, 8, 6, 6))]
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_a_model_without_layers_comes_back_as_it_was(lab):
    model = lab.build("(float[N,8] x) => (float[N,8] y) { h = Relu (x)  y = Abs (h) }")
    result, ledger = lab.quantized(model, lab.normal(1, 8))
    assert serialized(result) == serialized(model)
    assert ledger.counts() == {"applied": 0, "skipped": 2, "declined": 0}


@pytest.mark.parametrize(
    ("modes", "expected"), [((), "weight-only"), (("dynamic",), "weight-only"), (("static",), "static")]
)
def test_a_layer_without_an_allowed_mode_has_its_weights_stored(lab, modes, expected):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w, b) }}"
    model, feeds = lab.build(text, w=(8, 8, 3, 3), b=(8,)), lab.normal(1, 8, 6, 6)
    result, ledger = lab.quantized(model, feeds, modes=modes)
    assert ledger.of("quantize", "applied")[0].details["mode"] == expected
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


# --- odd shapes and values --------------------------------------------------------------------------------------------


def test_shapes_that_nobody_knows_are_no_obstacle(lab):
    model = lab.build(NET, **WEIGHTS)
    for node in model.graph:
        if not node.outputs[0].is_graph_output():
            node.outputs[0].shape = None
    feeds = lab.normal(1, 3, 6, 6)
    for target in ("ort-cpu", "openvino", "tensorrt"):
        result, _ = lab.quantized(model, feeds, target)
        assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_types_that_nobody_knows_are_no_obstacle(lab):
    model = lab.build(NET, **WEIGHTS)
    for node in model.graph:
        if not node.outputs[0].is_graph_output():
            node.outputs[0].shape, node.outputs[0].type = None, None
    feeds = lab.normal(1, 3, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


@pytest.mark.parametrize("target", ["ort-cpu", "openvino", "tensorrt"])
def test_sequences_of_any_length_are_calibrated(lab, target):
    text = "(float[N,T,8] x) => (float[N,T,8] y) { h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v) }"
    model = lab.build(text, w=(8, 8), v=(8, 8))
    feeds = [feed for length in (3, 9, 1) for feed in lab.normal(1, length, 8, count=2, seed=length)]
    result, _ = lab.quantized(model, feeds, target)
    for feed in feeds:
        assert lab.noise_db(lab.outputs(model, [feed]), lab.outputs(result, [feed])) > 12


def test_images_of_any_size_are_calibrated(lab):
    text = f"(float[N,3,H,W] x) => (float[N,8,H,W] y) {{ a = {CONV} (x, w)  r = Relu (a)  y = {CONV} (r, v) }}"
    model = lab.build(text, w=(8, 3, 3, 3), v=(8, 8, 3, 3))
    feeds = [feed for size in (4, 9, 2) for feed in lab.normal(1, 3, size, size + 1, count=2)]
    result, _ = lab.quantized(model, feeds)
    for feed in feeds:
        assert lab.noise_db(lab.outputs(model, [feed]), lab.outputs(result, [feed])) > 20


def test_values_that_are_empty_for_some_samples_are_left_out(lab):
    text = "(float[N,8] x, int64[1] n) => (float[M,16] y) { s = Slice (x, n, e)  y = MatMul (s, w) }"
    model = lab.build(text, w=(8, 16), e=np.array([4]))
    feeds = [{**feed, "n": np.array([n])} for n, feed in zip((0, 4, 4), lab.normal(4, 8, count=3), strict=True)]
    for modes in (("static",), ("dynamic",)):
        lab.quantized(model, feeds, modes=modes)
        lab.quantized(model, feeds[1:], modes=modes)  # never seen at all


def test_one_value_may_vanish_into_several_activations(lab):
    text = f"""(float[N,8,6,6] x) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)  r = Relu (a)  q = Relu (a)  c = {CONV} (r, v)  d = {CONV} (q, u)  y = Add (c, d) }}"""
    model, feeds = lab.build(text, w=(8, 8, 3, 3), v=(8, 8, 3, 3), u=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_an_activation_of_an_activation_is_right(lab):
    text = f"""(float[N,8,6,6] x) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)  r = Relu (a)  c = Clip (r, l, h)  y = {CONV} (c, v) }}"""
    model = lab.build(text, w=(8, 8, 3, 3), v=(8, 8, 3, 3), l=np.float32(0), h=np.float32(1))
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_an_activation_of_the_input_is_right(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y, float[N,8,6,6] r) {{ r = Relu (x)  y = {CONV} (r, w) }}"
    model, feeds = lab.build(text, w=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_weights_of_any_size_are_quantized(lab, scale):
    weights = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32) * np.float32(scale)
    model, feeds = lab.build("(float[N,8] x) => (float[N,16] y) { y = MatMul (x, w) }", w=weights), lab.normal(1, 8)
    for modes in (("static",), ("dynamic",)):
        result, _ = lab.quantized(model, feeds, modes=modes)
        assert lab.noise_db(lab.outputs(model, feeds) / scale, lab.outputs(result, feeds) / scale) > 25


@pytest.mark.parametrize("modes", [("static",), ("dynamic",)])
def test_values_that_are_not_finite_are_refused_with_their_name(lab, modes):
    text = "(float[N,8] x) => (float[N,16] y) { h = Log (x)  y = MatMul (h, w) }"
    model = lab.build(text, w=(8, 16))
    feeds = [{"x": np.zeros((1, 8), np.float32)}]
    with pytest.raises(DataError, match="value 'h' becomes infinite or NaN"):
        lab.quantized(model, feeds, modes=modes)


def test_calibration_data_is_asked_for(lab):
    model = lab.build(PERCEPTRON, w=(8, 8), v=(8, 8))
    with pytest.raises(DataError, match="needs calibration data"):
        quantize_layers(model, Scheme(), lab.context(model, None))


# --- CPUs that saturate -----------------------------------------------------------------------------------------------


def bits(ledger):
    return {entry.node: entry.details["bits"] for entry in ledger if "bits" in entry.details}


@pytest.mark.parametrize("modes", [("static",), ("dynamic",)])
def test_weights_are_narrow_only_where_pairs_really_saturate(lab, modes):
    text = "(float[N,8] x) => (float[N,16] y, float[N,16] z) { y = MatMul (x, w)  z = MatMul (x, v) }"
    mixed = np.tile(np.float32([1, -1]), (16, 4)).T.copy()
    model = lab.build(text, w=np.ones((8, 16), np.float32), v=mixed)
    feeds = [{"x": np.linspace(-0.1, 1, 8, dtype=np.float32)[None]}]
    _, ledger = lab.quantized(model, feeds, "ort-cpu-no-vnni", modes=modes)
    assert bits(ledger) == {"at_y": 7, "at_z": 8}
    assert "would saturate in 16 bits" in reasons(ledger)["at_y"]
    assert "saturate" not in reasons(ledger)["at_z"]


def test_data_that_never_saturates_keeps_eight_bits(lab):
    model = lab.build("(float[N,8] x) => (float[N,16] y) { y = MatMul (x, w) }", w=np.ones((8, 16), np.float32))
    lonely = np.zeros((8, 8), np.float32)
    np.fill_diagonal(lonely, 1.0)
    _, ledger = lab.quantized(model, [{"x": row[None]} for row in lonely], "ort-cpu-no-vnni", modes=("static",))
    assert bits(ledger) == {"at_y": 8}


def test_convolutions_pair_their_channels_and_depthwise_ones_nothing(lab):
    text = """(float[N,4,5,5] x) => (float[N,8,4,4] y, float[N,4,4,4] z) {
        y = Conv <kernel_shape=[2,2]> (x, w)  z = Conv <kernel_shape=[2,2], group=4> (x, v) }"""
    model = lab.build(text, w=np.ones((8, 4, 2, 2), np.float32), v=np.ones((4, 1, 2, 2), np.float32))
    feeds = [{"x": np.full((1, 4, 5, 5), 1.0, np.float32)}]
    _, ledger = lab.quantized(model, feeds, "ort-cpu-no-vnni", smallest=1)
    assert bits(ledger) == {"at_y": 7, "at_z": 8}


def test_what_was_made_for_such_a_cpu_computes_the_same_there(lab):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    result, ledger = lab.quantized(model, feeds, "ort-cpu-no-vnni")
    plain, saturating = (simulate(result, pair_saturation=choice) for choice in (False, True))
    assert 7 in bits(ledger).values()
    for feed in feeds:
        np.testing.assert_array_equal(saturating.run(feed)["y"], plain.run(feed)["y"])


# --- runtimes with fixed ranges only ----------------------------------------------------------------------------------

BLOCK = """(float[N,6,16] x) => (float[N,6,16] y) {
    n = LayerNormalization (x, g)
    q = MatMul (n, wq)  k = MatMul (n, wk)  v = MatMul (n, wv)
    kt = Transpose <perm=[0,2,1]> (k)  s = MatMul (q, kt)  m = Add (s, mask)  p = Softmax (m)
    a = MatMul (p, v)  o = MatMul (a, wo)  r = Add (o, x)
    n2 = LayerNormalization (r, g2)  h = MatMul (n2, w1)  e = Gelu (h)  f = MatMul (e, w2)  y = Add (f, r) }"""


def transformer(lab):
    """A block with a causal mask."""
    square = dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    ones = np.ones(16, np.float32)
    return lab.build(BLOCK, **square, w1=(16, 64), w2=(64, 16), g=ones, g2=ones, mask=mask)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("kind", ["Add", "Softmax", "LayerNormalization", "Gelu"])
def test_residual_sums_and_what_normalises_read_and_write_real_numbers(lab, target, kind):
    result, ledger = lab.quantized(transformer(lab), lab.normal(1, 6, 16, count=16), target)
    found = [node for node in result.graph if node.op_type == kind]
    assert found
    for node in found:
        assert all(value.producer() is None or value.producer().op_type != "DequantizeLinear" for value in node.inputs)
        assert reasons(ledger, "skipped")[node.name] == "no integer layer asks for its values"


def test_tensorrt_gets_signed_integers_without_zero_points(lab):
    for model, feeds in ((transformer(lab), lab.normal(1, 6, 16)), (lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6))):
        result, _ = lab.quantized(model, feeds, "tensorrt")
        found = [node for node in result.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert {node.inputs[0 if len(node.inputs) < 3 else 2].dtype for node in found} <= {
            ir.DataType.INT8,
            ir.DataType.INT32,
        }
        assert all(not constant(node.inputs[2]).any() for node in found if len(node.inputs) > 2)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_transformer_with_fixed_ranges_computes_nothing_but_its_projections_with_integers(lab, target):
    model, feeds = transformer(lab), lab.normal(1, 6, 16, count=16)
    result, ledger = lab.quantized(model, feeds, target)
    applied = {entry.node for entry in ledger.of("quantize", "applied")}
    assert applied == {"at_q", "at_k", "at_v", "at_o", "at_h", "at_f"}
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 28


def test_onnx_itself_accepts_every_result(lab):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    for target in ("ort-cpu", "ort-cpu-no-vnni", "openvino", "tensorrt"):
        result, _ = lab.quantized(model, feeds, target)
        onnx.checker.check_model(ir.to_proto(result), full_check=True)
