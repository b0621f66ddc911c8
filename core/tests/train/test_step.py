"""The `train` step in a recipe: the model learns, the account says how, and what came before it holds."""

import onnx_ir as ir
import pytest

from pumice import compress
from pumice.errors import DataError
from pumice.recipe import Recipe
from pumice.steps import Train

from .conftest import points


def recipe(loss, **knobs):
    return Recipe([Train(loss=loss, epochs=8, batch=32, lr=0.05, **knobs)])


@pytest.fixture
def result(classifier, loss):
    return compress(
        classifier(), points(320), recipe(loss), test=points(200, seed=1), runtime="reference", measure=False
    )


def test_the_model_gets_better_on_other_data(result):
    top1 = result.measurements.after.evaluation.scores["top1"]
    assert top1.mean > 0.85


def test_the_account_names_every_node_and_holds_the_curve(result):
    entries = {e.node: e for e in result.ledger.of("train")}
    whole = entries["model"]
    assert whole.details["losses"][0] > whole.details["losses"][-1]
    assert len(whole.details["scores"]) == 8
    by_op = {e.op: e.verdict for e in result.ledger.of("train")}
    assert by_op["Gemm"] == "applied"
    assert by_op["Relu"] == "skipped"


def test_normalisation_is_kept_for_training(result):
    assert "BatchNormalization" in {node.op_type for node in result.model.graph}


def test_the_original_is_left_unchanged(classifier, loss):
    model = classifier()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    compress(model, points(320), recipe(loss), runtime="reference", measure=False)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_same_inputs_give_the_same_bytes(classifier, loss):
    first, second = (
        compress(classifier(), points(320), recipe(loss), runtime="reference", measure=False).model for _ in range(2)
    )
    for name, value in first.graph.initializers.items():
        assert value.const_value.tobytes() == second.graph.initializers[name].const_value.tobytes()


def test_without_labels_there_is_nothing_to_train_on(classifier, loss):
    unlabelled = {"x": points(320)["x"]}
    with pytest.raises(DataError, match="needs labels"):
        compress(classifier(), unlabelled, recipe(loss), runtime="reference", measure=False)


def test_without_data_there_is_nothing_to_train_on(classifier, loss):
    with pytest.raises(DataError, match="needs data to train on"):
        compress(classifier(), None, recipe(loss), runtime="reference", measure=False)


def test_a_recipe_reads_back(loss):
    step = Train(epochs=5, augment=("flip",), lr=0.1)
    assert Recipe.from_toml(Recipe([step]).to_toml()) == Recipe([step])


def test_most_of_a_single_dataset_trains(classifier, loss):
    notes = compress(classifier(), points(400), recipe(loss), runtime="reference", measure=False).notes
    assert any("80 samples" in note and "the other samples trained" in note for note in notes)
