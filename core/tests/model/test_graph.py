import numpy as np
import onnx_ir as ir
import pytest

from pumice.model import (
    add_initializer,
    attribute,
    clone,
    constant,
    consumers,
    fingerprint,
    forget_names,
    fresh_name,
    is_constant,
    load,
    nodes,
    remove_unread,
    replace_input,
    replace_value,
    save,
    size,
    weight_of,
    weights_of,
)

NETWORK = """
g (float[N,4] x) => (float[N,3] y) { h = Gemm<alpha = 0.5, transB = 1>(x, w, b)  y = Relu(h) }"""


@pytest.fixture
def model(stored, rng):
    return load(stored(NETWORK, w=rng.standard_normal((3, 4), np.float32), b=np.zeros(3, np.float32)))


def test_constant_is_the_array_of_an_initializer_and_none_for_what_is_computed(model):
    gemm = model.graph[0]
    assert constant(gemm.inputs[1]).shape == (3, 4)
    assert is_constant(gemm.inputs[2])
    assert constant(gemm.inputs[0]) is None
    assert constant(None) is None


def test_consumers_are_the_readers_each_once(model):
    gemm, relu = model.graph
    assert consumers(gemm.outputs[0]) == (relu,)
    assert consumers(relu.outputs[0]) == ()


def test_attribute_gives_python_values_and_the_default_where_absent(model):
    gemm = model.graph[0]
    assert attribute(gemm, "alpha", 1.0) == 0.5
    assert attribute(gemm, "transB", 0) == 1
    assert attribute(gemm, "beta", 1.0) == 1.0


def test_replace_input_creates_missing_optional_inputs(model):
    relu = model.graph[1]
    replace_input(relu, 3, model.graph.inputs[0])
    assert [value.name if value else None for value in relu.inputs] == ["h", None, None, "x"]


def test_replace_value_hands_over_the_name_of_a_graph_output(model, run):
    gemm, relu = model.graph
    replace_value(relu.outputs[0], gemm.outputs[0])
    model.graph.remove(relu, safe=True)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert (run(model, x=-np.ones((1, 4), np.float32))[0] != 0).any()


def test_replace_value_refuses_to_rename_an_input_to_an_output(model):
    with pytest.raises(ValueError, match="'x' cannot take the place of the graph output 'y'"):
        replace_value(model.graph.outputs[0], model.graph.inputs[0])
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_fresh_names_never_repeat_even_before_they_are_used(model):
    names = [fresh_name(model, "w") for _ in range(3)]
    assert names == ["w_1", "w_2", "w_3"]
    assert fresh_name(model, "new") == "new"


def test_names_given_otherwise_are_seen_after_forgetting(model):
    fresh_name(model, "a")
    model.graph[0].name = "b"
    forget_names(model)
    assert fresh_name(model, "b") == "b_1"


def test_added_initializer_has_type_shape_and_a_fresh_name(model):
    value = add_initializer(model, "w", np.ones((2, 1), np.int8))
    assert (value.name, value.dtype, value.shape.numpy()) == ("w_1", ir.DataType.INT8, (2, 1))


def test_clone_shares_weights_and_nothing_that_can_be_edited(model):
    before = fingerprint(model)
    copy = clone(model)
    assert constant(copy.graph[0].inputs[1]) is constant(model.graph[0].inputs[1])
    copy.graph[0].inputs[1].dtype = ir.DataType.DOUBLE
    copy.graph[0].attributes.pop("alpha")
    copy.graph.remove(copy.graph[1])
    assert fingerprint(model) == before
    assert model.graph[0].inputs[1].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("edit", ["weight", "attribute", "name", "metadata", "order of inputs"])
def test_fingerprint_changes_with_content(model, edit):
    before, gemm = fingerprint(model), model.graph[0]
    match edit:
        case "weight":
            gemm.inputs[1].const_value = ir.tensor(constant(gemm.inputs[1]) + 1, name="w")
        case "attribute":
            gemm.attributes["alpha"] = ir.AttrFloat32("alpha", 0.25)
        case "name":
            gemm.name = "renamed"
        case "metadata":
            model.metadata_props["key"] = "value"
        case "order of inputs":
            replace_input(gemm, 2, None)
    assert fingerprint(model) != before


def test_fingerprint_does_not_depend_on_where_the_weights_are_stored(model, tmp_path):
    model.graph[0].inputs[1].const_value = ir.tensor(np.ones((64, 32), np.float32), name="w")
    model.graph.inputs[0].shape = ir.Shape(["N", 32])
    save(model, tmp_path / "whole.onnx")
    save(model, tmp_path / "split.onnx", external_data=True)
    assert fingerprint(load(tmp_path / "whole.onnx")) == fingerprint(load(tmp_path / "split.onnx"))


def test_size_counts_each_weight_once_and_packs_small_types(model):
    add_initializer(model, "unread", ir.tensor(np.zeros(9, np.int8), dtype=ir.DataType.INT4))
    found = size(model)
    assert found.total == 3 * 4 * 4 + 3 * 4 + 5
    assert found.nodes[model.graph[0].name] == 60
    assert found.initializers["unread"] == 5


def test_weight_of_is_the_matrix_and_not_the_bias(model):
    gemm, relu = model.graph
    assert weight_of(gemm).name == "w"
    assert [value.name for value in weights_of(gemm)] == ["w", "b"]
    assert weight_of(relu) is None


def test_nodes_descend_into_control_flow(stored):
    model = load(
        stored("""g (bool c, float[2] x) => (float[2] y) {
          y = If(c) <then_branch = t () => (float[2] a) { a = Relu(x) },
                     else_branch = e () => (float[2] b) { b = Neg(x) }>
        }""")
    )
    assert {node.op_type for node in nodes(model)} == {"If", "Relu", "Neg"}
    assert fresh_name(model, "a") == "a_1"


def test_what_nothing_reads_is_removed_and_its_names_are_free_again(model):
    relu = model.graph[1]
    replace_input(relu, 0, model.graph.inputs[0])
    assert fresh_name(model, "w") == "w_1"
    remove_unread(model)
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert not model.graph.initializers
    assert fresh_name(model, "w") == "w"
