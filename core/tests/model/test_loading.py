import numpy as np
import onnx
import pytest
from onnx import helper

from pumice.errors import ModelError
from pumice.ledger import Ledger
from pumice.model import constant, fingerprint, load, nodes, save

from .conftest import parsed

RELU = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
X = np.arange(12, dtype=np.float32).reshape(1, 3, 4)


def reasons(model):
    return [entry.reason for entry in model.meta["pumice.ledger"]]


OLD = {
    "Squeeze, axes as attribute": (11, "y = Squeeze<axes = [0]>(x)", "float[3,4]"),
    "Unsqueeze, axes as attribute": (12, "y = Unsqueeze<axes = [0]>(x)", "float[1,1,3,4]"),
    "ReduceSum, axes as attribute": (11, "y = ReduceSum<axes = [1], keepdims = 0>(x)", "float[1,4]"),
    "ReduceMean, axes as attribute": (17, "y = ReduceMean<axes = [1], keepdims = 0>(x)", "float[1,4]"),
    "Softmax over flattened axes": (11, "y = Softmax<axis = 1>(x)", "float[1,3,4]"),
    "Split, sizes as attribute": (12, "y, z = Split<axis = 2, split = [1, 3]>(x)", "float[1,3,1]"),
    "Split, even": (13, "y, z = Split<axis = 2>(x)", "float[1,3,2]"),
    "Clip, bounds as attributes": (10, "y = Clip<min = 2.0, max = 5.0>(x)", "float[1,3,4]"),
    "Dropout, ratio as attribute": (11, "y, m = Dropout<ratio = 0.3>(x)", "float[1,3,4]"),
    "Pad, pads as attribute": (10, "y = Pad<pads = [0, 0, 1, 0, 0, 1]>(x)", "float[1,3,6]"),
    "Upsample": (9, "s = Constant<value = float[3] {1.0, 1.0, 2.0}>()  y = Upsample(x, s)", "float[1,3,8]"),
    "TopK, k as attribute": (9, "y, i = TopK<k = 2, axis = 2>(x)", "float[1,3,2]"),
    "Slice, starts as attributes": (9, "y = Slice<axes = [2], starts = [1], ends = [3]>(x)", "float[1,3,2]"),
    "AveragePool": (18, "y = AveragePool<ceil_mode = 1, kernel_shape = [2], strides = [3]>(x)", "float[1,3,2]"),
    "Reshape": (11, "s = Constant<value = int64[2] {3, -1}>()  y = Reshape(x, s)", "float[3,4]"),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_old_opsets_become_the_working_one_with_equal_outputs(stored, run, case):
    opset, body, result = OLD[case]
    path = stored(f"g (float[1,3,4] x) => ({result} y) {{ {body} }}", opset=opset)
    model = load(path)
    assert model.opset_imports == {"": 21}
    assert f"converted from opset {opset} to 21" in reasons(model)
    np.testing.assert_array_equal(run(model, x=X)[0], run(path, x=X)[0])


def test_bodies_of_control_flow_are_converted_and_reported(stored, run):
    path = stored(
        """g (bool c, float[1,3,4] x) => (float[3,4] y) {
        y = If(c) <then_branch = t () => (float[3,4] a) { a = Squeeze<axes = [0]>(x) },
                   else_branch = e () => (float[3,4] b) { s = Squeeze<axes = [0]>(x)  b = Neg(s) }> }""",
        opset=11,
    )
    model = load(path)
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": X}
        np.testing.assert_array_equal(run(model, **feeds)[0], run(path, **feeds)[0])
    skipped = model.meta["pumice.ledger"].of("load", "skipped")
    assert [(entry.node, entry.op) for entry in skipped] == [("If_0", "If")]


def test_the_slope_of_an_opset_6_prelu_stays_on_the_channels(stored, run):
    slope = np.array([0.1, 0.2, 0.3], np.float32)
    path = stored("g (float[1,3,3] x, float[3] s) => (float[1,3,3] y) { y = PRelu(x, s) }", opset=6, s=slope)
    x = -np.ones((1, 3, 3), np.float32)
    np.testing.assert_allclose(run(load(path), x=x)[0][0, :, 0], -slope)


@pytest.mark.parametrize("opset", [21, 22, 23, 26])
def test_opsets_from_the_working_one_on_are_kept(stored, opset):
    assert load(stored(RELU, opset=opset)).opset_imports == {"": opset}


def test_a_model_that_cannot_be_converted_keeps_its_opset_and_the_ledger_says_so(stored, monkeypatch):
    def fail(proto, target):
        raise RuntimeError("no adapter for Relu")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    model = load(stored(RELU, opset=13))
    assert model.opset_imports == {"": 13}
    [entry] = model.meta["pumice.ledger"].of("load", "declined")
    assert "stays at opset 13" in entry.reason
    with pytest.raises(ModelError, match="uses opset 9 and cannot be converted to 21"):
        load(stored(RELU, opset=9))


def test_functions_are_inlined(stored, run):
    proto = parsed(
        """g (float[2] x) => (float[2] y) { t = local.twice(x)  y = local.twice(t) }
        <domain: "local", opset_import: ["": 21]> twice (a) => (b) { b = Add(a, a) }""",
        domains=["local"],
    )
    model = load(stored(proto))
    assert [node.op_type for node in model.graph] == ["Add", "Add"]
    assert model.opset_imports == {"": 21}
    assert run(model, x=np.ones(2, np.float32))[0].tolist() == [4, 4]


def test_constants_become_initializers_and_identities_of_them_vanish(stored, run):
    path = stored("""g (float[2] x) => (float[2] y) {
        c = Constant<value = float[2] {1.0, 2.0}>()  i = Identity(c)  j = Identity(i)
        k = Constant<value_float = 3.0>()  t = Add(x, j)  y = Mul(t, k) }""")
    model = load(path)
    assert [node.op_type for node in model.graph] == ["Add", "Mul"]
    assert constant(model.graph[0].inputs[1]).tolist() == [1, 2]
    assert run(model, x=np.ones(2, np.float32))[0].tolist() == [6, 9]


def test_large_constants_may_stand_in_nodes_and_in_bodies(stored, run, rng):
    proto = parsed(
        """g (bool c, float[1,64] x) => (float[1,64] y) {
        w = Constant()  t = MatMul(x, w)
        y = If(c) <then_branch = a () => (float[1,64] p) { v = Constant()  p = MatMul(t, v) },
                   else_branch = b () => (float[1,64] q) { q = Neg(t) }> }""",
        opset=11,
    )
    body = next(attribute.g for attribute in proto.graph.node[2].attribute if attribute.name == "then_branch")
    for node in (proto.graph.node[0], body.node[0]):
        weight = onnx.numpy_helper.from_array(rng.standard_normal((64, 64), np.float32))
        node.attribute.append(helper.make_attribute("value", weight))
    path = stored(proto)
    feeds = {"c": np.array(True), "x": np.ones((1, 64), np.float32)}
    np.testing.assert_array_equal(run(load(path), **feeds)[0], run(path, **feeds)[0])


def test_what_reaches_no_output_is_removed(stored):
    path = stored(
        "g (float[2] x) => (float[2] y) { y = Relu(x)  z = Neg(w) }", domains=["spare"], w=np.ones(2, np.float32)
    )
    model = load(path)
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert not model.graph.initializers
    assert model.opset_imports == {"": 21}
    assert any("removed: 1 Neg" in reason for reason in reasons(model))


def test_unsorted_nodes_are_sorted(stored):
    path = stored("g (float[2] x) => (float[2] y) { y = Relu(t)  t = Neg(x) }")
    assert [node.op_type for node in load(path).graph] == ["Neg", "Relu"]


def test_inputs_with_default_values_become_constants(stored):
    text = "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }"
    model = load(stored(text, w=np.ones(2, np.float32)))
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert any("1 inputs with a default value became constants: 'w'" in reason for reason in reasons(model))


def test_every_node_gets_a_unique_name_and_given_names_are_kept(stored):
    relu = [
        helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=name)
        for i, name in enumerate(["", "a b/c:0", "", "a b/c:0"])
    ]
    values = [helper.make_tensor_value_info(name, 1, [2]) for name in ("v0", "v4")]
    proto = helper.make_model(
        helper.make_graph(relu, "g", values[:1], values[1:]), ir_version=10, opset_imports=[helper.make_opsetid("", 21)]
    )
    model = load(stored(proto))
    assert [node.name for node in model.graph] == ["Relu_0", "a b/c:0", "Relu_1", "a b/c:0_1"]


def test_a_body_that_shadows_an_outer_name_is_renamed(stored, run):
    path = stored("""g (bool c, float[2] x) => (float[2] y) { t = Neg(x)
        u = If(c) <then_branch = a () => (float[2] t) { t = Relu(x) },
                   else_branch = b () => (float[2] t) { t = Abs(x) }>
        y = Add(t, u) }""")
    model = load(path)
    assert len({value.name for node in nodes(model) for value in node.outputs}) == 5
    assert run(model, c=np.array(False), x=np.array([-1, -2], np.float32))[0].tolist() == [2, 4]


def test_dynamic_axes_stay_dynamic_and_shapes_are_inferred(stored):
    path = stored("g (float[N,3] x) => (float[N,2] y) { t = MatMul(x, w)  y = Relu(t) }", w=np.ones((3, 2), np.float32))
    model = load(path)
    shape = model.graph[0].outputs[0].shape
    assert (str(shape[0]), shape[1]) == ("N", 2)
    assert str(model.graph.inputs[0].shape[0]) == "N"


def test_microsoft_operators_are_carried(stored, run):
    text = "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
    model = load(stored(text, opset=17, domains=["com.microsoft"]))
    assert model.opset_imports == {"": 21, "com.microsoft": 1}
    assert run(model, x=np.zeros(2, np.float32))[0].tolist() == [0, 0]


def test_the_given_ledger_receives_the_lines(stored):
    ledger = Ledger()
    model = load(stored(RELU, opset=17), ledger=ledger)
    assert [entry.reason for entry in ledger] == ["converted from opset 17 to 21"]
    assert "pumice.ledger" not in model.meta


def test_loading_twice_and_from_elsewhere_gives_the_same_model(stored, tmp_path):
    path = stored("g (float[2] x) => (float[2] y) { t = Relu(x)  y = Neg(t) }", opset=13)
    copy = tmp_path / "elsewhere" / "other.onnx"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert fingerprint(load(path)) == fingerprint(load(copy))


def test_metadata_of_model_and_nodes_survives_conversion(stored):
    proto = parsed("g (float[1,2] x) => (float[2] y) { y = Squeeze<axes = [0]>(x) }", opset=11)
    helper.set_model_props(proto, {"kept": "0,1"})
    proto.graph.node[0].metadata_props.add(key="scope", value="head")
    model = load(stored(proto))
    assert model.metadata_props == {"kept": "0,1"}
    assert model.graph[0].metadata_props["scope"] == "head"


def test_external_data_is_mapped_not_read(stored, tmp_path, run):
    path = stored("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=np.eye(64, dtype=np.float32))
    save(load(path), tmp_path / "split.onnx", external_data=True)
    model = load(tmp_path / "split.onnx")
    weight = constant(model.graph.initializers["w"])
    assert not weight.flags.writeable
    assert not weight.flags.owndata
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], x)


def test_four_bit_weights_are_read_from_either_storage(stored, tmp_path):
    proto = parsed("g (float s) => (float[5] y) { y = DequantizeLinear(q, s) }", opset=21)
    proto.graph.initializer.append(helper.make_tensor("q", onnx.TensorProto.INT4, [5], [-8, -1, 0, 3, 7]))
    model = load(stored(proto))
    assert constant(model.graph.initializers["q"]).astype(int).tolist() == [-8, -1, 0, 3, 7]
    save(model, tmp_path / "again.onnx")
    assert fingerprint(load(tmp_path / "again.onnx")) == fingerprint(model)


def test_ai_onnx_is_the_default_domain(stored):
    proto = parsed(RELU)
    proto.opset_import[0].domain = "ai.onnx"
    assert load(stored(proto)).opset_imports == {"": 21}
