import re

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.errors import DataError, PluginError
from pumice.measure import choose_metrics
from pumice.measure.metrics import Top5

RNG = np.random.default_rng(0)
ROWS = 8


def chosen(output, labels=None, **outputs):
    data = np.zeros((ROWS, 3), np.float32)
    dataset = open_dataset(data if labels is None else (data, labels))
    found = choose_metrics({"y": output, **outputs}, dataset)
    return [metric.name for metric in found.metrics], found.notes


def floats(*shape):
    return RNG.standard_normal((ROWS, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("output", "labels", "names"),
    [
        (floats(5), np.arange(ROWS) % 5, ["top1", "agreement"]),
        (floats(5), np.eye(5)[np.arange(ROWS) % 5], ["top1", "agreement"]),
        (floats(1), np.arange(ROWS) % 2, ["top1", "agreement"]),
        (floats(), np.arange(ROWS) % 2, ["top1", "agreement"]),
        (floats(7, 5), np.ones((ROWS, 7), int), ["token-accuracy", "agreement"]),
        (floats(5, 7), np.ones((ROWS, 7), int), ["token-accuracy", "agreement"]),
        (floats(1), floats(1), ["mse", "relative-error"]),
        (floats(3, 4), floats(3, 4), ["mse", "relative-error"]),
    ],
)
def test_labels_that_fit_decide(output, labels, names):
    assert chosen(output, labels) == (names, ())


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (floats(5), ["agreement", "cosine"]),
        (floats(7, 5), ["agreement", "cosine"]),
        (floats(1), ["mse", "relative-error"]),
        (floats(3, 8, 8), ["cosine", "relative-error"]),
        (np.arange(ROWS), ["agreement", "cosine"]),
    ],
)
def test_without_labels_it_is_fidelity_and_that_is_said(output, names):
    found, notes = chosen(output)
    assert found == names
    assert notes[0].startswith("the data has no labels, so accuracy is fidelity")


def test_rows_of_unit_length_are_embeddings_not_scores():
    rows = floats(16)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert chosen(rows)[0] == ["cosine", "relative-error"]


@pytest.mark.parametrize("shape", [(384,), (64, 384)])
def test_features_of_like_size_are_an_embedding_whatever_their_length(shape):
    assert chosen(floats(*shape))[0] == ["cosine", "relative-error"]


@pytest.mark.parametrize("columns", [2, 10, 1000])
def test_scores_that_choose_are_classes_as_logits_and_as_a_softmax_that_is_sure(columns):
    logits = floats(columns)
    logits[np.arange(ROWS), np.arange(ROWS) % columns] += 20.0
    assert chosen(logits)[0] == ["agreement", "cosine"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert chosen(exponents / exponents.sum(axis=1, keepdims=True))[0] == ["agreement", "cosine"]


def test_peaks_of_independent_sigmoids_choose_too():
    salience = np.full((ROWS, 360), 1e-3, np.float32)
    salience[:, 40:45] = 0.9
    assert chosen(salience)[0] == ["agreement", "cosine"]


def test_one_number_a_sample_is_no_direction():
    assert chosen(RNG.standard_normal(ROWS).astype(np.float32))[0] == ["mse", "relative-error"]
    assert chosen(floats(1), np.full(ROWS, 9))[0] == ["relative-error"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([f"text {i}" for i in range(ROWS)]), "texts"),
        (np.full(ROWS, 17), "17 to 17"),
        (np.full(ROWS, 0.5), "0.5 to 0.5"),
        (np.full(ROWS, np.nan), "nan"),
    ],
    ids=["texts", "no such class", "no class at all", "NaN"],
)
def test_labels_that_fit_no_output_are_said_to_be_unused_and_no_metric_reads_them(labels, said):
    names, notes = chosen(floats(5), labels)
    assert names == ["agreement", "relative-error"]  # a cosine would be that with the labels
    assert re.search(rf"the labels \(shape \[\d+\], .*{said}\) fit no output of the model", notes[0])


def test_named_metrics_are_taken_as_they_are():
    dataset = open_dataset((np.zeros((ROWS, 3), np.float32), np.zeros(ROWS, int)))
    metrics = choose_metrics({}, dataset, ["top1", Top5(output="y")]).metrics
    assert [m.name for m in metrics] == ["top1", "top5"]
    assert metrics[1].output == "y"


def test_a_metric_that_needs_labels_is_refused_without():
    with pytest.raises(DataError, match="'top1' needs labels"):
        choose_metrics({}, open_dataset(np.zeros((ROWS, 3), np.float32)), ["top1"])


def test_a_metric_that_is_not_installed_names_the_nearest():
    with pytest.raises(PluginError, match="did you mean 'top1'"):
        choose_metrics({}, open_dataset(np.zeros((ROWS, 3), np.float32)), ["top-1"])


def test_no_data_means_no_metrics_and_that_is_said():
    found = choose_metrics({}, None)
    assert found.metrics == ()
    assert "accuracy was not measured" in found.notes[0]


def test_the_model_itself_may_be_given(model, data):
    assert [m.name for m in choose_metrics(model, open_dataset(data, model)).metrics] == ["top1", "agreement"]
