import errno
import io
import zipfile

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.errors import DataError

X = np.arange(80, dtype=np.float32).reshape(20, 4)
Y = np.arange(20) % 3


@pytest.fixture
def model(model_of):
    return model_of("float[N,4] x")


def values(dataset, size=None):
    return np.concatenate([b.feeds["x"] for b in dataset.batches(size)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("label", ["labels", "label", "y"])
def test_arrays_are_read_by_input_name_and_labels_by_theirs(tmp_path, model, save, label):
    save(tmp_path / "data.npz", x=X, **{label: Y})
    dataset = open_dataset(tmp_path / "data.npz", model)
    np.testing.assert_array_equal(values(dataset), X)
    np.testing.assert_array_equal(values(dataset.select([19, 0, 7])), X[[19, 0, 7]])
    np.testing.assert_array_equal(np.concatenate([b.labels for b in dataset.batches(7)]), Y)


def test_an_input_called_y_is_no_label(tmp_path, model_of):
    np.savez(tmp_path / "data.npz", y=X)
    assert not open_dataset(tmp_path / "data.npz", model_of("float[N,4] y", "float[N,4] z")).labelled


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_the_only_array_feeds_the_only_input(tmp_path, model, name):
    (np.savez if name.endswith("npz") else np.save)(tmp_path / name, X)
    dataset = open_dataset(tmp_path / name, model)
    np.testing.assert_array_equal(values(dataset), X)
    assert dataset.notes == [f"the only array of '{name}' was taken for the input 'x'"]


def test_scalars_and_texts_are_read(tmp_path, model_of):
    model = model_of("float[N,4] x,  int64 rate,  string[N] name", "float[N,4] z")
    np.savez(tmp_path / "data.npz", x=X, rate=np.int64(8), name=np.array(["a", "b"] * 10))
    batch = next(open_dataset(tmp_path / "data.npz", model).batches())
    assert batch.feeds["rate"] == 8
    assert batch.feeds["name"].tolist() == ["a"]


def test_a_folder_of_feeds_is_read_in_the_order_of_names(tmp_path, model):
    for i in (3, 1, 2):
        np.savez(tmp_path / f"{i}.npz", x=X[i : i + 1], labels=Y[i])
    dataset = open_dataset(tmp_path, model)
    np.testing.assert_array_equal(values(dataset), X[1:4])
    np.testing.assert_array_equal(next(dataset.batches()).labels, Y[1:4])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "file,label\n2.npz,20\n1.npz,10\n"),
        ("labels.json", '{"1.npz": 10, "2.npz": 20}'),
        ("labels.json", "[10, 20]"),
        ("labels.csv", "10\n20\n"),
    ],
)
def test_labels_of_a_folder_may_lie_beside_the_feeds(tmp_path, model, name, content):
    for i in (1, 2):
        np.savez(tmp_path / f"{i}.npz", x=X[i : i + 1])
    (tmp_path / name).write_text(content)
    assert next(open_dataset(tmp_path, model).batches()).labels.tolist() == [10, 20]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.csv", "file,label\n1.npz,10\n", "no label for '2.npz'; did you mean '1.npz'"),
        ("labels.json", "[10, 20, 30]", "3 labels for 2 samples"),
        ("labels.json", "{", "cannot be read"),
        ("labels.json", "7", "no list of labels"),
        ("labels.csv", "", "it is empty"),
    ],
)
def test_labels_that_do_not_fit_the_folder_are_refused(tmp_path, model, name, content, words):
    for i in (1, 2):
        np.savez(tmp_path / f"{i}.npz", x=X[i : i + 1])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path, model)


@pytest.mark.parametrize("name", ["labels.npy", "labels.npz", "labels.json", "labels.csv"])
def test_labels_given_apart_may_be_a_file(tmp_path, model, name):
    path = tmp_path / name
    match path.suffix:
        case ".npy":
            np.save(path, Y)
        case ".npz":
            np.savez(path, Y)
        case ".json":
            path.write_text(str(Y.tolist()))
        case _:
            path.write_text("label\n" + "\n".join(map(str, Y)))
    assert [int(s.label[0]) for s in open_dataset(X, model, labels=path)] == Y.tolist()


def test_a_feed_without_the_label_that_others_have_is_named(tmp_path, model):
    np.savez(tmp_path / "1.npz", x=X[:1], labels=1)
    np.savez(tmp_path / "2.npz", x=X[:1])
    with pytest.raises(DataError, match=r"2\.npz' has no array 'labels'"):
        list(open_dataset(tmp_path, model).batches())


def test_damaged_files_are_told(tmp_path, model):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "a.npy").write_bytes(b"nothing")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    np.savez(tmp_path / "columns.npz", x=np.asfortranarray(X))
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    for name, words in {
        "a.npz": "cannot be read as NumPy arrays",
        "a.npy": "cannot be read as NumPy arrays",
        "objects.npz": "holds Python objects",
        "columns.npz": "ascontiguousarray",
        "empty.npz": "holds no arrays",
    }.items():
        with pytest.raises(DataError, match=words):
            open_dataset(tmp_path / name, model)


def test_an_array_that_was_cut_off_is_told(tmp_path, model):
    np.save(tmp_path / "x.npy", X)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="was cut off"):
        list(open_dataset(tmp_path / "x.npy", model).batches())


def test_a_form_that_no_reader_knows_lists_those_there_are(tmp_path, model):
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"npz-folder.*pumice plugins"):
        open_dataset(tmp_path / "data.parquet", model)


def test_a_full_temporary_folder_is_told_apart_from_damaged_data(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((9, 3), np.float32))

    class Full(io.BytesIO):
        def write(self, data, /):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match=r"cannot be unpacked in .*No space left on device.*TMPDIR"):
        open_dataset(path)
