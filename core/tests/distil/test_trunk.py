"""Layers are found by what repeats and what is added back, whatever they are called."""

import numpy as np
import pytest

from pumice.distil.students import shortened, weights
from pumice.distil.trunk import layers, waists
from pumice.errors import ModelError
from pumice.plan import compile_plan
from pumice.testing.models import random_feeds, tiny_cnn, weightless


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_every_layer_of_a_transformer_is_one_layer(network, family):
    found = layers(network(family, width=8, heads=2, layers=3))
    assert len(found) == 3
    assert len({layer.kind for layer in found}) == 1


def test_every_residual_block_of_a_picture_network_is_a_layer(network):
    assert len(layers(network("resnet", widths=[4, 6], blocks=2))) == 4
    assert len(layers(network("mobilenet", widths=[4, 6], blocks=3))) == 5  # the first block of the second has no sum


def test_layers_follow_each_other(network):
    found = layers(network("gpt", width=8, heads=2, layers=3))
    assert [layer.end for layer in found[:-1]] == [layer.start for layer in found[1:]]


def test_nothing_passes_a_waist(network):
    model = network("resnet", widths=[4, 6])
    x = {"x": random_feeds(1)[0]["x"]}
    whole = compile_plan(model).run(x)
    for value in waists(model)[1:]:
        cut = compile_plan(model, [value.name]).run(x)[value.name]
        tail = model.clone()
        (same,) = [v for node in tail.graph for v in node.outputs if v.name == value.name]
        same.name, stand_in = f"{value.name}/old", type(same)(name=value.name, shape=same.shape, type=same.type)
        same.replace_all_uses_with(stand_in)
        tail.graph.inputs.append(stand_in)
        found = compile_plan(tail, ["logits"]).run({"x": np.zeros_like(x["x"]), value.name: cut})
        np.testing.assert_allclose(found["logits"], whole["logits"], atol=1e-4)


def test_half_of_the_layers_stay_spread_from_first_to_last(network):
    model = network("gpt", width=8, heads=2, layers=5)
    short = shortened(model, 0.6)
    assert {n.name.split(".")[0] for n in short.graph if n.name.startswith("layer")} == {"layer0", "layer2", "layer4"}


def test_of_residual_blocks_that_differ_the_one_with_the_fewest_weights_goes(network):
    short = shortened(network("resnet", widths=[4, 6, 8]), 0.67)
    assert {n.name.split(".")[0] for n in short.graph if ".block" in n.name} == {"stage1", "stage2"}


def test_a_shorter_model_computes_what_its_layers_compute(network):
    model = network("resnet", widths=[4], blocks=2)
    feeds = random_feeds(1)[0]
    for layer in layers(model):  # branches that begin with zero change nothing
        assert compile_plan(model, [layer.end.name]).run(feeds)
    np.testing.assert_allclose(
        compile_plan(shortened(model, 0.5)).run(feeds)["logits"], compile_plan(model).run(feeds)["logits"], atol=1e-5
    )
    assert weights(shortened(model, 0.5)) < weights(model)


def test_a_network_without_layers_cannot_be_shortened():
    with pytest.raises(ModelError, match="no layer can be left out"):
        shortened(weightless(), 0.5)


def test_the_steps_of_an_unrolled_loop_are_no_layers(network):
    model = tiny_cnn()
    (conv,) = [node for node in model.graph if node.op_type == "Conv" and node.inputs[1].name == "w2"]
    again = conv.outputs[0]
    for _ in range(3):
        node = type(conv)("", "Conv", [again, *conv.inputs[1:]], attributes=list(conv.attributes.values()))
        node.outputs[0].name, node.outputs[0].type = f"again{id(node)}", again.type
        node.outputs[0].shape = again.shape
        again.replace_all_uses_with(node.outputs[0])
        node.replace_input_with(0, again)
        model.graph.insert_after(again.producer(), node)
        again = node.outputs[0]
    assert all(layer.kind == 0 for layer in layers(model))
