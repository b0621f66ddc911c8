import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.data import Dataset, open_dataset
from pumice.errors import DataError
from pumice.registry import discover

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 4


def values(dataset: Dataset, batch_size=None) -> np.ndarray:
    return np.concatenate([batch.feeds["x"] for batch in dataset.batches(batch_size)])


@pytest.fixture
def model(model_of):
    return model_of("float[N,3] x")


def feeds():
    return [{"x": X[i : i + 1]} for i in range(20)]


def labelled_feeds():
    return list(zip(feeds(), Y, strict=True))


@pytest.mark.parametrize(
    "source",
    [X, {"x": X}, feeds(), list(X[:, None]), lambda: iter(feeds())],
    ids=["array", "table", "feeds", "bare arrays", "function"],
)
def test_every_form_gives_the_same_samples(model, source):
    dataset = open_dataset(source, model)
    np.testing.assert_array_equal(values(dataset), X)
    assert not dataset.labelled
    assert len(dataset) == 20


@pytest.mark.parametrize(
    "source",
    [(X, Y), ({"x": X}, Y), {"x": X, "labels": Y}, {"x": X, "y": Y}, labelled_feeds(), lambda: iter(labelled_feeds())],
    ids=["pair", "table and labels", "labels", "y", "pairs", "function of pairs"],
)
def test_every_form_may_carry_labels(model, source):
    dataset = open_dataset(source, model)
    assert dataset.labelled
    np.testing.assert_array_equal(np.concatenate([b.labels for b in dataset.batches(6)]), Y)


@pytest.mark.parametrize("source", [X, feeds(), lambda: iter(feeds())], ids=["array", "feeds", "function"])
def test_labels_may_be_given_apart(model, source):
    dataset = open_dataset(source, model, labels=Y.tolist())
    np.testing.assert_array_equal(np.concatenate([b.labels for b in dataset.select(range(5, 20)).batches()]), Y[5:])


@settings(deadline=None)
@given(size=st.integers(1, 25), limit=st.integers(1, 25))
def test_batches_hold_the_first_samples_in_order_whatever_their_size(size, limit):
    found = list(open_dataset({"x": X}).batches(size, limit))
    assert sum(b.size for b in found) == min(limit, 20)
    assert max(b.size for b in found) == min(size, limit, 20)
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in found]), X[:limit])


def test_inputs_of_varying_width_make_batches_of_equal_neighbours(model_of):
    widths = [5, 5, 8, 5, 8, 8]
    dataset = open_dataset([{"x": np.ones((1, w), np.float32)} for w in widths], model_of("float[N,W] x"))
    assert [b.feeds["x"].shape for b in dataset.batches(32)] == [(2, 5), (1, 8), (1, 5), (2, 8)]


def test_a_model_with_a_fixed_batch_of_one_gets_one_sample_at_a_time(model_of):
    assert [b.size for b in open_dataset(X, model_of("float[1,3] x")).batches(32)] == [1] * 20


def test_a_model_with_a_larger_fixed_batch_gets_exactly_that_and_the_rest_is_told(model_of):
    dataset = open_dataset((X, Y), model_of("float[8,3] x"))
    assert [b.feeds["x"].shape for b in dataset.batches()] == [(8, 3), (8, 3)]
    np.testing.assert_array_equal(next(dataset.batches()).labels, Y[:8])
    assert dataset.notes == ["the model takes exactly 8 rows of 'x' at a time: the last 4 are left out"]


def test_a_sequence_whose_first_axis_is_time_is_one_sample(model_of):
    model = model_of("int64[T,N] chars,  int32[N] lens", "float[1,N,4] y")
    sequences = [{"chars": np.ones((t, 1), np.int64), "lens": np.array([t], np.int32)} for t in (3, 7, 3)]
    assert [b.feeds["chars"].shape for b in open_dataset(sequences, model).batches()] == [(3, 1), (7, 1), (3, 1)]


def test_a_state_and_a_scalar_serve_every_sample(model_of):
    model = model_of("float[N,3] x,  float[2,N,4] state,  int64 rate", "float[N,3] y")
    dataset = open_dataset({"x": X, "state": np.zeros((2, 1, 4), np.float32), "rate": np.int64(16000)}, model)
    found = list(dataset.batches(8))
    assert len(found) == 20
    assert found[3].feeds["state"].shape == (2, 1, 4)
    assert found[3].feeds["rate"] == 16000


def test_an_array_with_one_axis_more_holds_whole_feeds(model_of):
    whole = np.ones((6, 2, 3), np.float32)
    dataset = open_dataset(whole, model_of("float[2,3] x"))
    assert [b.feeds["x"].shape for b in dataset.batches()] == [(2, 3)] * 6


def test_a_feed_of_several_rows_is_one_sample_with_a_label_a_row(model):
    dataset = open_dataset([({"x": X[:4]}, Y[:4]), ({"x": X[4:8]}, Y[4:8])], model)
    assert [b.labels.tolist() for b in dataset.batches()] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_labels_of_different_lengths_stay_apart(model):
    dataset = open_dataset([({"x": X[:1]}, [1, 2, 3]), ({"x": X[1:2]}, [4, 5])], model)
    labels = next(dataset.batches()).labels
    assert labels.dtype == object
    assert [list(label) for label in labels] == [[1, 2, 3], [4, 5]]


def test_a_dataset_made_without_the_model_is_bound_to_it(model_of):
    dataset = open_dataset(open_dataset({"x": X.astype(np.float64)}), model_of("float[N,3] x"))
    assert next(dataset.batches()).feeds["x"].dtype == np.float32


def test_any_order_can_be_selected_and_selected_again(model):
    chosen = open_dataset((X, Y), model).select([7, 3, 3, -1]).select([1, 3])
    np.testing.assert_array_equal(values(chosen), X[[3, 19]])
    np.testing.assert_array_equal(next(chosen.batches()).labels, Y[[3, 19]])


def test_a_slice_can_be_selected(model):
    np.testing.assert_array_equal(values(open_dataset(X, model).select(slice(2, 9, 3))), X[2:9:3])


def test_the_fingerprint_follows_content_and_selection(model):
    one = open_dataset(X, model)
    changed = X.copy()
    changed[11, 2] += 1
    assert one.fingerprint() == open_dataset(X.copy(), model).fingerprint()
    different = {one.fingerprint(), open_dataset(changed, model).fingerprint(), one.select([0, 1]).fingerprint()}
    assert len(different) == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "no samples"),
        (np.zeros((0, 3), np.float32), "no samples"),
        (lambda: iter(()), "no samples"),
        ("nowhere/at/all", "no data at 'nowhere/at/all'"),
        (iter(feeds()), "read only once"),
        (7, "a int is no data"),
        ([1, 2], "is a int"),
        ({"x": X, "labels": Y[:19]}, "20 samples but 19 labels"),
        ([({"x": X[:1]}, 1), {"x": X[1:2]}], "sample 1 has no label, unlike the first"),
        ([({"x": X[:4]}, [1, 2])], "4 rows but 2 labels"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(model, source, words):
    with pytest.raises(DataError, match=words):
        list(open_dataset(source, model).batches())


@pytest.mark.parametrize("image", ["a.png", "cat/a.JPG", "calibration/a.png"])
def test_images_without_a_reader_of_images_name_the_plugin_to_install(tmp_path, model, monkeypatch, image):
    monkeypatch.setenv("PUMICE_PLUGINS", "")
    monkeypatch.setattr("pumice.registry._registry", discover)
    for file in (tmp_path / image, tmp_path / "test" / "a.png"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with pytest.raises(DataError, match=r"holds images, .*: pip install pumice-data-images$"):
        open_dataset(tmp_path, model)


def test_rows_without_a_reader_of_text_name_the_plugin_to_install(tmp_path, model, monkeypatch):
    monkeypatch.setenv("PUMICE_PLUGINS", "")
    monkeypatch.setattr("pumice.registry._registry", discover)
    (tmp_path / "a.jsonl").write_text('{"x": [1, 2, 3]}\n')
    with pytest.raises(DataError, match=r"holds rows of text, .*: pip install pumice-data-text$"):
        open_dataset(tmp_path / "a.jsonl", model)


def test_labels_of_another_number_are_refused(model):
    with pytest.raises(DataError, match="20 samples but 3 labels"):
        open_dataset(feeds(), model, labels=[1, 2, 3])


def test_arrays_of_different_lengths_are_refused(model_of):
    model = model_of("float[N,3] x,  float[N,2] z", "float[N,3] y")
    with pytest.raises(DataError, match=r"'x' has 20, 'z' has 19"):
        open_dataset({"x": X, "z": np.ones((19, 2), np.float32)}, model)


def test_a_bare_array_for_a_model_with_several_inputs_is_refused(model_of):
    with pytest.raises(DataError, match="inputs x, z"):
        open_dataset(X, model_of("float[N,3] x,  float[N,2] z", "float[N,3] y"))


def test_a_function_that_hands_out_its_only_iterator_is_found_out(model):
    only = iter(feeds())
    with pytest.raises(DataError, match="return a new iterator at every call"):
        open_dataset(lambda: only, model)


def test_a_function_that_gives_nothing_the_second_time_is_found_out(model):
    calls = []

    def once():
        calls.append(1)
        yield from feeds() if len(calls) <= 2 else []  # a generator: its body runs when it is first asked

    with pytest.raises(DataError, match="gave no sample the second time"):
        list(open_dataset(once, model).batches())


def test_a_function_is_read_in_order_only(model):
    dataset = open_dataset(lambda: iter(feeds()), model)
    np.testing.assert_array_equal(values(dataset.select([2, 5, 19])), X[[2, 5, 19]])
    with pytest.raises(DataError, match="only be read in order"):
        values(dataset.select([5, 2]))
