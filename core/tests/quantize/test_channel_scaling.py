import attrs
import numpy as np
import pytest

from pumice.model import add_initializer, clone, constant, replace_input
from pumice.quantize.channel_scaling import Rescaling, channel_factors, dynamic_factors, fold
from pumice.quantize.statistics import ChannelStatistics
from pumice.quantize.target import Target

CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
FLOATS = attrs.evolve(Target.named("ort-cpu"), channel_scales="everywhere")


def uneven(*shape):
    """Weights whose outputs have ranges that differ by up to 64."""
    rng = np.random.default_rng(3)
    gains = 2.0 ** -np.linspace(0, 6, shape[0])
    return (rng.standard_normal(shape) * gains.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


def observed(lab, model, placement, feeds):
    """Statistics of all values of the placement."""
    found = {v.name: ChannelStatistics() for v in placement.space_of}
    context = lab.context(model, feeds)
    context.stream(model, found, lambda values: [found[name].update(values[name]) for name in found])
    return found


def with_factors(model, placement, factors):
    """The float model with all factors folded into its weights; what it stores is divided by them."""
    layers = {layer.node.name: layer for layer in placement.layers}
    changed = clone(model)
    for node in changed.graph:
        if node.name not in layers:
            continue
        layer = layers[node.name]
        output = (
            placement.absorbed[layer.node.outputs[0]].outputs[0]
            if layer.node.outputs[0] in placement.absorbed
            else layer.node.outputs[0]
        )
        reading, writing = (factors.get(placement.space_of.get(value, -1)) for value in (layer.data, output))
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        weights, scaled = fold(layer, constant(node.inputs[1]), bias, reading, writing)
        for index, array in ((1, weights), (2, scaled)):
            if array is not None:
                replace_input(node, index, add_initializer(changed, f"{node.name}/{index}", array.astype(np.float32)))
    return changed


@pytest.mark.parametrize(
    "middle",
    [
        "b = Relu (a)",
        "b = MaxPool <kernel_shape=[2,2]> (r)  r = Relu (a)",
        "b = Identity (a)",
        "r = Relu (a)  b = AveragePool <kernel_shape=[2,2]> (r)",
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_network_with_its_factors_folded_in_is_the_same_network(lab, middle, groups):
    parts = middle.split("  ")
    middle = "  ".join(sorted(parts, key=lambda part: "b =" in part))
    text = f"""(float[N,3,6,6] x) => (float[N,4,h,w2] y) {{
        a = {CONV} (x, w, c)  {middle}
        d = Conv <kernel_shape=[3,3], group={groups}> (b, v)  y = {CONV} (d, u) }}"""
    model = lab.build(text, w=uneven(8, 3, 3, 3), c=(8,), v=(8, 8 // groups, 3, 3), u=(4, 8, 3, 3))
    if "Identity" in middle:
        model.graph[1].outputs[0].replace_all_uses_with(model.graph[0].outputs[0])
        model.graph.remove(model.graph[1])
    placement, _ = lab.placed(model)
    feeds = lab.normal(1, 3, 6, 6)
    factors = channel_factors(placement, observed(lab, model, placement, feeds))
    hidden = {
        number: found for number, found in factors.items() if all(v.name != "x" for v in placement.spaces()[number])
    }
    assert hidden
    assert any(found.factor.min() < 0.5 for found in hidden.values())
    np.testing.assert_allclose(
        lab.outputs(with_factors(model, placement, hidden), feeds), lab.outputs(model, feeds), rtol=1e-4, atol=1e-5
    )


def test_uneven_channels_are_stored_more_evenly_and_quantize_better(lab):
    text = f"(float[N,3,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  b = Relu (a)  y = {CONV} (b, v) }}"
    second = uneven(8, 8, 3, 3).transpose(1, 0, 2, 3)[:, ::-1].copy()
    model, feeds = lab.build(text, w=uneven(8, 3, 3, 3), v=second), lab.normal(1, 3, 6, 6, count=16)
    exact = lab.outputs(model, feeds)
    plain, even = (lab.outputs(lab.quantized(model, feeds, equalize=choice)[0], feeds) for choice in (False, True))
    assert lab.noise_db(exact, even) > lab.noise_db(exact, plain) + 1


def test_a_gate_takes_the_factors_of_what_it_multiplies(lab):
    """A squeeze-and-excitation gate: no pass over the values themselves."""
    text = f"""(float[N,8,6,6] x) => (float[N,8,6,6] y) {{
        a = {CONV} (x, w)  m = GlobalAveragePool (a)  k = Conv (m, v)  h = Sigmoid (k)  y = Mul (a, h) }}"""
    model, feeds = lab.build(text, w=uneven(8, 8, 3, 3), v=(8, 8, 1, 1)), lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds, FLOATS)
    products = [node for node in result.graph if node.op_type == "Mul" and node.name != "at_y"]
    (scaled,) = (node for node in products if node.inputs[0].name == "h")
    (gated,) = (node for node in result.graph if node.name == "at_y")
    assert scaled.outputs[0] in gated.inputs
    assert not any(node.inputs[0].producer().op_type == "DequantizeLinear" for node in products if node is not scaled)
    plain, _ = lab.quantized(model, feeds, attrs.evolve(FLOATS, channel_scales="none"))
    exact = lab.outputs(model, feeds)
    assert lab.noise_db(exact, lab.outputs(result, feeds)) > lab.noise_db(exact, lab.outputs(plain, feeds))


def test_values_that_only_floats_read_are_restored(lab):
    text = f"(float[N,3,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w, c)  y = Tanh (a) }}"
    model = lab.build(text, w=uneven(8, 3, 3, 3), c=np.linspace(-30, 30, 8).astype(np.float32))
    feeds = lab.normal(1, 3, 6, 6)
    result, ledger = lab.quantized(model, feeds)
    assert {"Mul", "Add"} <= {node.op_type for node in result.graph}
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 35
    assert len(ledger)


@pytest.mark.parametrize(("kernel", "inputs", "operators"), [(1, 1, set()), (3, 64, {"Mul"})])
def test_a_pass_behind_a_small_convolution_must_bring_more(lab, kernel, inputs, operators):
    text = f"""(float[N,{inputs},6,6] x) => (float[N,8,h,w2] y) {{
        a = Conv <kernel_shape=[{kernel},{kernel}]> (x, w, c)  y = Tanh (a) }}"""
    gains = np.where(np.arange(8) < 4, 1.0, 0.4).reshape(-1, 1, 1, 1)  # half of the channels would gain a little
    weights = (np.random.default_rng(3).uniform(-1, 1, (8, inputs, kernel, kernel)) * gains).astype(np.float32)
    model = lab.build(text, w=weights, c=np.zeros(8, np.float32))
    result, _ = lab.quantized(model, lab.normal(1, inputs, 6, 6))
    assert {node.op_type for node in result.graph} & {"Mul", "Add"} == operators


def test_a_bounded_activation_keeps_its_range(lab):
    text = f"(float[N,3,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  b = Clip (a, l, h)  y = {CONV} (b, v) }}"
    model = lab.build(text, w=uneven(8, 3, 3, 3), v=(8, 8, 3, 3), l=np.float32(0), h=np.float32(6))
    placement, _ = lab.placed(model)
    factors = channel_factors(placement, observed(lab, model, placement, lab.normal(1, 3, 6, 6)))
    assert all("b" not in {v.name for v in placement.spaces()[number]} for number in factors)


@pytest.mark.parametrize(("scales", "count"), [("everywhere", 2), ("free", 1), ("none", 0)])
def test_a_target_says_where_factors_may_be(lab, scales, count):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  b = Relu (a)  y = {CONV} (b, v) }}"
    model = lab.build(text, w=uneven(8, 8, 3, 3), v=(8, 8, 3, 3))
    placement, _ = lab.placed(model)
    feeds = [
        {"x": feed["x"] * 2.0 ** -np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)} for feed in lab.normal(1, 8, 6, 6)
    ]
    factors = channel_factors(placement, observed(lab, model, placement, feeds), scales)
    assert len(factors) == count
    assert all({v.name for v in placement.spaces()[number]} <= {"x", "b"} for number in factors)


def test_unknown_shapes_have_no_factors(lab):
    text = f"(float[N,3,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  b = Relu (a)  y = {CONV} (b, v) }}"
    model = lab.build(text, w=uneven(8, 3, 3, 3), v=(8, 8, 3, 3))
    for node in model.graph:
        node.outputs[0].shape = None
    placement, _ = lab.placed(model)
    factors = channel_factors(placement, observed(lab, model, placement, lab.normal(1, 3, 6, 6)))
    assert all(v.name == "x" for number in factors for v in placement.spaces()[number])


def test_running_ranges_have_factors_along_the_last_axis(lab):
    model = lab.build("(float[N,4,16] x) => (float[N,4,64] y) { s = Abs (x)  y = MatMul (s, w) }", w=(16, 64))
    gains = 2.0 ** -np.linspace(0, 7, 16, dtype=np.float32)
    feeds = [{"x": feed["x"] * gains} for feed in lab.normal(1, 4, 16, count=16)]
    placement, _ = lab.placed(model)
    running = {"s": ChannelStatistics(axis=-1)}
    for feed in feeds:
        running["s"].update(np.abs(feed["x"]))
    (factors,) = dynamic_factors(placement.layers, running).values()
    assert factors.shape == (16,)
    assert factors[0] == 1.0
    assert factors[-1] < 0.3


@pytest.mark.parametrize(
    ("columns", "before", "count"), [(8, "s = Abs (x)", 0), (512, "s = Abs (x)", 1), (8, "s = Mul (x, k)", 1)]
)
def test_a_pass_over_the_input_must_pay_for_the_product_it_serves(lab, columns, before, count):
    text = f"(float[N,4,16] x) => (float[N,4,{columns}] y) {{ {before}  y = MatMul (s, w) }}"
    numbers = {"k": np.float32(1.0)} if "k" in before else {}
    model = lab.build(text, w=(16, columns), **numbers)
    placement, _ = lab.placed(model)
    spread = np.repeat(np.linspace(1.0, 0.25, 2, dtype=np.float32), 8)  # less error, if it is evened out
    running = {"s": ChannelStatistics(axis=-1)}
    for feed in lab.normal(1, 4, 16, count=16):
        running["s"].update(np.clip(feed["x"], -1, 1) * spread)
    assert len(dynamic_factors(placement.layers, running)) == count


def test_values_never_seen_have_no_factors(lab):
    model = lab.build("(float[N,4,16] x) => (float[N,4,8] y) { y = MatMul (x, w) }", w=(16, 8))
    placement, _ = lab.placed(model)
    assert dynamic_factors(placement.layers, {"x": ChannelStatistics(axis=-1)}) == {}


def test_what_is_stored_is_moved_and_divided():
    rescaling = Rescaling(np.array([1.0, 0.5]), np.array([3.0, -1.0]))
    stored = rescaling.stored(np.array([[[4.0], [0.0]]], np.float32))
    assert stored.tolist() == [[[1.0], [2.0]]]
    assert rescaling.range(np.array([2.0, -2.0]), np.array([4.0, 0.0])) == (-2.0, 2.0)
