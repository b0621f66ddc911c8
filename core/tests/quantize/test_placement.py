import attrs
import numpy as np
import onnx_ir as ir
import pytest

from pumice.measure import pick_runtime
from pumice.quantize.placement import already_quantized, clip_bounds
from pumice.quantize.target import Target

X = "float[N,8,6,6] x"
CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
W = (8, 8, 3, 3)
INF = np.inf


def spaces(placement):
    """The names of the values that share parameters, as sets."""
    return sorted(sorted(v.name for v in values) for values in placement.spaces().values())


def names(found):
    return {item.name for item in found}


def absorbed(placement):
    return names(placement.absorbed.values())


# --- convolutions and their activations -------------------------------------------------------------------------------


def test_a_chain_of_convolutions_is_integer_from_end_to_end(lab):
    model = lab.build(f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) b = Relu (a) y = {CONV} (b, v) }}", w=W, v=W)
    placement, _ = lab.placed(model)
    assert spaces(placement) == [["b"], ["x"], ["y"]]
    assert absorbed(placement) == {"at_b"}
    assert names(placement.writes_integers) == {"b", "y"}


@pytest.mark.parametrize(
    ("bounds", "vanishes"),
    [
        ((0.0, 6.0), True),
        ((-1.0, 1.0), True),
        ((0.0, None), True),
        ((0.5, 6.0), False),
        ((6.0, 0.0), False),
        ((0.0, 0.0), False),
        ((None, 6.0), False),
        ((None, None), False),
        ((0.0, np.nan), False),
    ],
)
def test_a_clip_vanishes_if_its_bounds_lie_around_zero(lab, bounds, vanishes):
    given = {name: np.float32(bound) for name, bound in zip("lh", bounds, strict=True) if bound is not None}
    arguments = ", ".join(name if name in given else '""' for name in "lh")
    model = lab.build(f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) y = Clip (a, {arguments}) }}", w=W, **given)
    placement, _ = lab.placed(model)
    assert absorbed(placement) == ({"at_y"} if vanishes else set())
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    exact = lab.outputs(model, feeds)
    if not np.isnan(bounds).any() if None not in bounds else True:
        np.testing.assert_allclose(lab.outputs(result, feeds), exact, atol=0.2)


def test_the_bounds_of_a_clip_that_is_computed_are_unknown(lab):
    model = lab.build(
        f"({X}, float h) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) y = Clip (a, l, h) }}", w=W, l=np.float32(0)
    )
    assert clip_bounds(model.graph[1]) is None


def test_an_old_clip_has_its_bounds_as_attributes():
    node = ir.node("Clip", [ir.Value(name="a")], attributes={"min": 0.0, "max": 6.0})
    assert clip_bounds(node) == (0.0, 6.0)


def test_an_activation_that_is_read_before_and_after_stays(lab):
    text = f"({X}) => (float[N,8,6,6] y, float[N,8,6,6] a) {{ a = {CONV} (x, w) b = Relu (a) y = {CONV} (b, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=W))
    assert absorbed(placement) == set()
    assert spaces(placement) == [["a"], ["b"], ["x"], ["y"]]


def test_an_activation_inside_a_control_flow_body_stays(lab):
    text = f"""({X}, bool c) => (y) {{
        a = {CONV} (x, w)
        y = If (c) <then_branch = g1 () => (float[N,8,6,6] t) {{ t = Relu (a) }},
                    else_branch = g2 () => (float[N,8,6,6] e) {{ e = Identity (x) }}>
    }}"""
    model = lab.build(text, w=W)
    placement, _ = lab.placed(model)
    assert absorbed(placement) == set()
    feeds = [{**feed, "c": np.array(True)} for feed in lab.normal(1, 8, 6, 6)]
    result, ledger = lab.quantized(model, feeds)
    np.testing.assert_allclose(lab.outputs(result, feeds), lab.outputs(model, feeds), atol=0.1)
    assert "control-flow" in next(entry.reason for entry in ledger if entry.op == "Identity")


def test_an_activation_that_feeds_a_layer_and_an_output_is_quantized_for_both(lab):
    text = f"({X}) => (float[N,8,6,6] b, float[N,8,6,6] y) {{ a = {CONV} (x, w) b = Relu (a) y = {CONV} (b, v) }}"
    model = lab.build(text, w=W, v=W)
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert [v.name for v in result.graph.outputs] == ["b", "y"]
    found = lab.outputs(result, feeds)
    assert found.min() == 0.0
    np.testing.assert_allclose(found, lab.outputs(model, feeds), atol=0.1)


def test_symmetric_ranges_cannot_take_an_activation_in(lab):
    target = attrs.evolve(Target.named("ort-cpu"), activation_symmetric=True)
    model = lab.build(f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) y = Relu (a) }}", w=W)
    placement, _ = lab.placed(model, target)
    assert absorbed(placement) == set()
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds, target)
    assert lab.outputs(result, feeds).min() == 0.0


# --- sums, joints and pools -------------------------------------------------------------------------------------------

RESIDUAL = f"""({X}) => (float[N,8,6,6] y) {{
    a = {CONV} (x, w)  b = Relu (a)  c = {CONV} (b, v)
    s = Add (c, b)  r = Relu (s)  y = {CONV} (r, u) }}"""


def test_a_residual_sum_between_convolutions_is_integer(lab):
    placement, _ = lab.placed(lab.build(RESIDUAL, w=W, v=W, u=W))
    assert spaces(placement) == [["b"], ["c"], ["r"], ["x"], ["y"]]
    assert {"at_s"} <= names(placement.integer_nodes)
    assert absorbed(placement) == {"at_b", "at_r"}


def test_what_reads_a_sum_in_floating_point_reads_it_after_its_activation(lab):
    text = RESIDUAL.replace("=> (float[N,8,6,6] y)", "=> (float[N,8,6,6] g, float[N,8,6,6] y)").replace(
        "y =", "g = Abs (r) y ="
    )
    model = lab.build(text, w=W, v=W, u=W)
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    np.testing.assert_allclose(lab.outputs(result, feeds), lab.outputs(model, feeds), atol=0.3)


def test_a_sum_whose_result_leaves_the_model_as_well_keeps_its_activation(lab):
    text = RESIDUAL.replace("=> (float[N,8,6,6] y)", "=> (float[N,8,6,6] s, float[N,8,6,6] y)")
    model = lab.build(text, w=W, v=W, u=W)
    placement, _ = lab.placed(model)
    assert "at_r" not in absorbed(placement)
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    np.testing.assert_allclose(lab.outputs(result, feeds), lab.outputs(model, feeds), atol=0.3)


def test_a_sum_of_a_transformer_stays_in_floating_point(lab):
    text = """(float[N,4,8] x) => (float[N,4,8] y) {
        n = LayerNormalization (x, g) a = MatMul (n, w) s = Add (a, x) y = MatMul (s, v) }"""
    model = lab.build(text, g=(8,), w=(8, 8), v=(8, 8))
    for target in ("ort-cpu", "openvino", "tensorrt"):
        placement, _ = lab.placed(model, target)
        assert {"at_s", "at_n"}.isdisjoint(names(placement.integer_nodes))


def test_a_sum_with_a_constant_stays_in_floating_point(lab):
    text = f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) s = Add (a, k) y = {CONV} (s, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=W, k=(1, 8, 1, 1)))
    assert "at_s" not in names(placement.integer_nodes)


def test_where_convolutions_add_only_the_other_term_is_quantized(lab):
    model = lab.build(RESIDUAL, w=W, v=W, u=W)
    placement, _ = lab.placed(model, "tensorrt")
    assert spaces(placement) == [["b"], ["r"], ["x"]]
    assert names(placement.sums) == {"at_s"}
    feeds = lab.normal(1, 8, 6, 6)
    result, ledger = lab.quantized(model, feeds, "tensorrt")
    (total,) = (node for node in result.graph if node.name == "at_s")
    assert [v.producer().op_type for v in total.inputs] == ["Conv", "DequantizeLinear"]
    assert any("computed by the convolution" in entry.reason for entry in ledger)


def test_the_later_of_two_convolutions_adds_the_earlier(lab):
    text = f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w) b = {CONV} (x, v) s = Add (b, a) y = {CONV} (s, u) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=W, u=W), "tensorrt")
    assert spaces(placement) == [["a"], ["s"], ["x"]]


def test_a_concatenation_shares_the_parameters_of_what_it_joins(lab):
    text = f"""({X}) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)  b = Relu (a)  c = {CONV} (x, v)  d = Relu (c)
        j = Concat <axis=1> (b, d)  y = {CONV} (j, u) }}"""
    placement, _ = lab.placed(lab.build(text, w=W, v=W, u=(8, 16, 3, 3)))
    assert spaces(placement) == [["b", "d", "j"], ["x"], ["y"]]


def test_what_is_clipped_differently_is_joined_with_parameters_of_its_own(lab):
    text = f"""({X}) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)  b = Relu (a)  m = MaxPool <kernel_shape=[1,1]> (b)  c = {CONV} (x, v)
        j = Concat <axis=1> (m, c)  y = {CONV} (j, u) }}"""
    model = lab.build(text, w=W, v=W, u=(8, 16, 3, 3))
    placement, _ = lab.placed(model)
    assert spaces(placement) == [["b", "m"], ["c"], ["j"], ["x"], ["y"]]
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


@pytest.mark.parametrize(
    "move",
    [
        "MaxPool <kernel_shape=[2,2], pads=[0,0,1,1]> (b)",
        "Transpose <perm=[0,1,3,2]> (b)",
        "Slice (b, start, stop, axes)",
        "Reshape (b, shape)",
        "Gather <axis=2> (b, order)",
        "Tile (b, repeats)",
        "Expand (b, shape)",
    ],
)
def test_operators_that_move_numbers_move_integers(lab, move):
    text = f"({X}) => (float[N,8,a,b] y) {{ a = {CONV} (x, w)  b = Relu (a)  m = {move}  y = {CONV} (m, v) }}"
    constants = {
        "start": np.array([1]), "stop": np.array([6]), "axes": np.array([2]), "shape": np.array([-1, 8, 6, 6]),
        "order": np.array([0, 2, 4]), "repeats": np.array([1, 1, 1, 2]),
    }  # fmt: skip
    if move.startswith("Expand"):
        constants["shape"] = np.array([1, 8, 6, 6])
    model = lab.build(text, w=W, v=W, **{name: array for name, array in constants.items() if name in move})
    placement, _ = lab.placed(model)
    assert ["b", "m"] in spaces(placement)
    feeds = lab.normal(1, 8, 6, 6)
    result, ledger = lab.quantized(model, feeds)
    assert "at_m" in {entry.node for entry in ledger if entry.verdict == "applied"}
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_a_split_moves_integers_to_all_its_outputs(lab):
    text = f"""({X}) => (float[N,4,6,6] y, float[N,4,6,6] t) {{
        a = {CONV} (x, w)  p, q = Split <axis=1, num_outputs=2> (a)  y = {CONV} (p, v)  t = Abs (q) }}"""
    model = lab.build(text, w=W, v=(4, 4, 3, 3))
    placement, _ = lab.placed(model)
    assert ["a", "p", "q"] in spaces(placement)
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_a_pool_that_writes_indices_stays_in_floating_point(lab):
    text = f"""({X}) => (float[N,8,5,5] y, int64[N,8,5,5] i) {{
        a = {CONV} (x, w)  m, i = MaxPool <kernel_shape=[2,2]> (a)  y = {CONV} (m, v) }}"""
    model = lab.build(text, w=W, v=W)
    placement, _ = lab.placed(model)
    assert "at_m" not in names(placement.integer_nodes)
    lab.quantized(model, lab.normal(1, 8, 6, 6))


def test_a_wish_is_not_handed_up_to_a_floating_point_producer(lab):
    text = f"({X}) => (float[N,8,6,6] y) {{ s = Sigmoid (x)  m = MaxPool <kernel_shape=[1,1]> (s)  y = {CONV} (m, w) }}"
    placement, _ = lab.placed(lab.build(text, w=W))
    assert spaces(placement) == [["m"], ["y"]]


def test_long_chains_of_sums_are_placed_quickly(lab):
    steps = " ".join(f"m{i} = MaxPool <kernel_shape=[1,1]> (a{i})  a{i + 1} = Add (a{i}, m{i})" for i in range(400))
    text = f"({X}) => (float[N,8,6,6] y) {{ a0 = {CONV} (x, w) {steps} y = {CONV} (a400, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=W))
    assert spaces(placement) == [["a0"], ["a400"], ["x"], ["y"]]


def test_long_chains_of_concatenations_are_placed_quickly(lab):
    steps = " ".join(
        f"a{i + 1} = Concat <axis=2> (a{i}, a{i})" if i < 3 else f"a{i + 1} = Concat <axis=2> (a{i}, a0)"
        for i in range(60)
    )
    text = f"({X}) => (float[N,8,h,6] y) {{ a0 = {CONV} (x, w) {steps} y = {CONV} (a60, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=W))
    assert len(placement.spaces()) == 3


# --- layers -----------------------------------------------------------------------------------------------------------


def layer(placement, name):
    return next(found for found in placement.layers if found.node.name == name)


def test_a_convolution_whose_result_feeds_floats_is_integer_still(lab):
    model = lab.build(f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  y = Softmax (a) }}", w=W)
    placement, _ = lab.placed(model)
    assert names(placement.writes_integers) == {"a"}


def test_depthwise_and_grouped_convolutions_are_layers(lab):
    text = f"""({X}) => (float[N,8,6,6] y) {{
        a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (x, w)
        y = Conv <kernel_shape=[1,1], group=2> (a, v) }}"""
    model = lab.build(text, w=(8, 1, 3, 3), v=(8, 4, 1, 1))
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds, smallest=1)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


def test_one_and_three_dimensional_convolutions_are_layers(lab):
    for rank in (1, 3):
        size = ",".join(["5"] * rank)
        model = lab.build(
            f'(float[N,4,{size}] x) => (float[N,4,{size}] y) {{ y = Conv <auto_pad="SAME_UPPER"> (x, w, b) }}',
            w=(4, 4, *[3] * rank),
            b=(4,),
        )
        feeds = lab.normal(1, 4, *[5] * rank)
        result, _ = lab.quantized(model, feeds, smallest=1)
        assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


def test_a_transposed_convolution_stores_its_weights(lab):
    model = lab.build(
        f"({X}) => (float[N,6,8,8] y) {{ y = ConvTranspose <kernel_shape=[3,3], group=2> (x, w, b) }}",
        w=(8, 3, 3, 3),
        b=(6,),
    )
    placement, _ = lab.placed(model)
    assert layer(placement, "at_y").mode == "weight-only"
    assert not placement.spaces()
    feeds = lab.normal(1, 8, 6, 6)
    result, ledger = lab.quantized(model, feeds)
    assert "stored as integers" in ledger.of("quantize", "applied")[0].reason
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 35


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (1, 1)])
@pytest.mark.parametrize("activations", [("dynamic",), ("static",)])
def test_a_gemm_is_a_layer_whatever_its_layout(lab, transposed, bias, activations):
    shape = (5, 8) if transposed else (8, 5)
    weights = {"w": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    if bias is not None:
        weights["b"] = np.random.default_rng(1).standard_normal(bias).astype(np.float32)
    inputs = ", ".join(["x", *weights])
    model = lab.build(f"(float[N,8] x) => (float[N,5] y) {{ y = Gemm <transB={transposed}> ({inputs}) }}", **weights)
    feeds = lab.normal(3, 8, count=16)
    result, ledger = lab.quantized(model, feeds, modes=activations, smallest=1)
    assert ledger.of("quantize", "applied")[0].details["mode"] == activations[0]
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


@pytest.mark.parametrize("shape", [(3, 5), (3, 1)])
def test_a_gemm_with_a_bias_for_every_row_is_declined(lab, shape):
    model = lab.build("(float[3,8] x) => (float[3,5] y) { y = Gemm (x, w, b) }", w=(8, 5), b=np.ones(shape, np.float32))
    _, ledger = lab.placed(model)
    assert "its bias is not one number for each output" in ledger.of("quantize", "declined")[0].reason


@pytest.mark.parametrize("attribute", ["transA=1", "alpha=0.5", "beta=2.0"])
def test_a_gemm_that_no_integer_kernel_computes_is_declined(lab, attribute):
    model = lab.build(f"(float[8,8] x) => (float[8,5] y) {{ y = Gemm <{attribute}> (x, w, b) }}", w=(8, 5), b=(5,))
    _, ledger = lab.placed(model)
    assert "has no integer kernel" in ledger.of("quantize", "declined")[0].reason


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("data", "weights"),
    [((3, 4, 8), (8, 5)), ((2, 3, 4, 8), (8, 5)), ((8,), (8, 5)), ((3, 4, 8), (3, 8, 5)), ((4, 8), (3, 8, 5))],
)
def test_a_product_is_a_layer_whatever_its_rank(lab, mode, data, weights):
    given, made = (",".join(map(str, shape)) for shape in (data, np.matmul(np.ones(data), np.ones(weights)).shape))
    model = lab.build(f"(float[{given}] x) => (float[{made}] y) {{ y = MatMul (x, w) }}", w=weights)
    feeds = lab.normal(*data, count=16)
    result, ledger = lab.quantized(model, feeds, modes=(mode,), smallest=1)
    assert ledger.of("quantize", "applied")[0].details["mode"] == mode
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30


def test_a_product_whose_weights_come_first_is_declined(lab):
    model = lab.build("(float[8,N] x) => (float[5,N] y) { y = MatMul (w, x) }", w=(5, 8))
    placement, ledger = lab.placed(model)
    assert placement.layers == ()
    assert "its weights come first" in ledger.of("quantize", "declined")[0].reason


def test_a_product_of_two_activations_is_no_layer(lab):
    model = lab.build(
        "(float[N,8] x, float[8,5] z) => (float[N,5] y, float[N,5] t) { y = MatMul (x, z)  t = MatMul (x, w) }",
        w=(8, 5),
    )
    placement, ledger = lab.placed(model)
    assert names(found.node for found in placement.layers) == {"at_t"}
    assert not len(ledger)


def test_an_embedding_stores_its_rows(lab):
    model = lab.build("(int64[N,T] i) => (float[N,T,8] y) { y = Gather (w, i) }", w=(50, 8))
    feeds = [{"i": np.arange(50).reshape(5, 10)}]
    result, _ = lab.quantized(model, feeds)
    assert not any(node.op_type == "QuantizeLinear" for node in result.graph)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 35


@pytest.mark.parametrize(("rows", "lookups"), [(64, 1), (80_000, 2)])
def test_only_a_small_table_is_expanded_whole(lab, rows, lookups):
    """Then onnxruntime runs one look-up and nothing else; the rows are the same numbers."""
    model = lab.build("(int64[N,T] i) => (float[N,T,4] y) { y = Gather (w, i) }", w=(rows, 4))
    feeds = [{"i": np.arange(50).reshape(5, 10)}]
    result, _ = lab.quantized(model, feeds)
    found = pick_runtime("ort").optimized_ops(result)
    assert found["Gather"] == lookups
    assert sum(found.values()) == (1 if lookups == 1 else 4)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 35


@pytest.mark.parametrize("head", ["p = GlobalAveragePool (c)", "r = Relu (c)  p = MaxPool <kernel_shape=[6,6]> (r)"])
def test_a_product_that_reads_what_convolutions_write_takes_its_range_from_calibration(lab, head):
    text = f"({X}) => (float[N,8] y) {{ c = {CONV} (x, w)  {head}  f = Flatten (p)  y = Gemm (f, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=(8, 8)))
    assert [layer.mode for layer in placement.layers] == ["static", "static"]


@pytest.mark.parametrize(
    "head",
    [
        "p = Tanh (c)",
        "s = Sigmoid (c)  m = Mul (s, c)  p = GlobalAveragePool (m)",
        f"d = {CONV} (c, w)  s = Add (c, d)  p = GlobalAveragePool (s)",
    ],
)
def test_a_product_that_reads_real_numbers_finds_its_range_while_it_runs(lab, head):
    text = f"({X}) => (float[N,n] y) {{ c = {CONV} (x, w)  {head}  f = Flatten (p)  y = MatMul (f, v) }}"
    placement, _ = lab.placed(lab.build(text, w=W, v=(288 if "Tanh" in head else 8, 8)))
    assert placement.layers[-1].mode == "dynamic"


def test_a_table_that_is_not_read_by_rows_is_declined(lab):
    model = lab.build("(int64[N] i) => (float[50,N] y) { y = Gather <axis=1> (w, i) }", w=(50, 8))
    _, ledger = lab.placed(model)
    assert "whole rows" in ledger.of("quantize", "declined")[0].reason


def test_weights_that_are_an_input_with_a_default_are_declined(lab):
    model = lab.build(f"({X}, float[8,8,3,3] w) => (float[N,8,6,6] y) {{ y = {CONV} (x, w) }}", w=W)
    placement, ledger = lab.placed(model)
    assert placement.layers == ()
    assert "an input of the model" in ledger.of("quantize", "declined")[0].reason


def test_a_bias_that_is_computed_is_declined(lab):
    model = lab.build(f"({X}, float[8] b) => (float[N,8,6,6] y) {{ y = {CONV} (x, w, b) }}", w=W)
    _, ledger = lab.placed(model)
    assert "its bias is computed" in ledger.of("quantize", "declined")[0].reason


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_other_types_are_declined_with_their_type(lab, dtype):
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    model = lab.build(f"({kind}[N,8] x) => ({kind}[N,5] y) {{ y = MatMul (x, w) }}", w=np.ones((8, 5), dtype))
    _, ledger = lab.placed(model)
    assert "only float32 is quantized" in ledger.of("quantize", "declined")[0].reason


def test_an_excluded_node_stays_with_its_reason(lab):
    model = lab.build(f"({X}) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  y = {CONV} (a, v) }}", w=W, v=W)
    placement, ledger = lab.placed(model, excluded=lambda node: "because" if node.name == "at_a" else None)
    assert names(found.node for found in placement.layers) == {"at_y"}
    assert [entry.reason for entry in ledger.of("quantize", "declined")] == ["because"]


def test_operators_of_other_domains_are_none_of_ours(lab):
    model = lab.build("(float[N,8] x) => (float[N,5] y) { y = MatMul (x, w) }", w=(8, 5))
    model.graph[0].domain = "somebody.else"
    placement, _ = lab.placed(model)
    assert placement.layers == ()


def test_every_node_of_a_quantized_model_is_recognised(lab):
    model = lab.build("(float[N,8] x) => (float[N,5] y) { y = MatMul (x, w) }", w=(8, 8))
    assert already_quantized(model) is None
    for modes in (("static",), ("dynamic",), ()):
        result, _ = lab.quantized(
            lab.build("(float[N,8] x) => (float[N,8] y) { y = MatMul (x, w) }", w=(8, 8)), lab.normal(1, 8), modes=modes
        )
        assert "start from the floating-point model" in already_quantized(result)
