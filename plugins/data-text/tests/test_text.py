import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.data import open_dataset
from pumice.errors import DataError
from pumice.testing import DatasetReaderContract
from pumice_data_text import TextReader

BERT = "int64[N,S] input_ids, int64[N,S] attention_mask"


class TestText(DatasetReaderContract):
    strategy = TextReader

    def write(self, folder, feeds, labels):
        samples = zip(feeds.tolist(), labels.tolist(), strict=True)
        return rows(folder / "data.jsonl", *({"x": x, "label": label} for x, label in samples))


def model_of(inputs):
    """A model of these inputs whose output is the first one."""
    kind, name = inputs.split(", ")[0].split()
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({kind} y) {{ y = Identity({name}) }}'
    return ir.from_proto(parser.parse_model(text))


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "good": 1, "bad": 2, "film": 3}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))


def declare(folder, text):
    (folder / "pumice.toml").write_text(text)


def rows(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.usefixtures("tokenizer")
def test_texts_are_tokenised_as_declared(tmp_path):
    (tmp_path / "data.csv").write_text('review,label\n"good, film",pos\n"bad\nbad film",neg\n')
    declare(tmp_path, 'classes = ["neg", "pos"]\n[tokenizer]\nfile = "tokenizer.json"\ntext = "review"\n')
    samples = list(open_dataset(tmp_path / "data.csv", model_of(BERT)))
    assert samples[0].feeds["input_ids"].tolist() == [[1, 0, 3]]
    assert samples[1].feeds["input_ids"].tolist() == [[2, 2, 3]]
    assert samples[1].feeds["attention_mask"].tolist() == [[1, 1, 1]]
    assert [int(s.label[0]) for s in samples] == [1, 0]


@pytest.mark.usefixtures("tokenizer")
def test_texts_are_padded_to_a_fixed_axis_and_cut_to_the_declared_length(tmp_path):
    path = rows(tmp_path / "data.jsonl", {"text": "good film"}, {"text": "bad bad bad bad bad bad"})
    declare(tmp_path, '[tokenizer]\nfile = "tokenizer.json"\nmax_length = 3\n[inputs.ids]\nfrom = "ids"\n')
    assert [s.feeds["ids"].shape for s in open_dataset(path, model_of("int64[N,S] ids"))] == [(1, 2), (1, 3)]
    fixed = open_dataset(path, model_of("int64[N,5] ids"))
    assert next(fixed.batches()).feeds["ids"].tolist() == [[1, 3, 0, 0, 0], [2, 2, 2, 2, 2]]


def test_arrays_of_ids_get_the_type_and_the_leading_axis_of_the_input(tmp_path):
    path = rows(tmp_path / "data.jsonl", {"ids": [5, 6, 7], "label": 1}, {"ids": [[8, 9]], "label": 0})
    samples = list(open_dataset(path, model_of("int32[N,S] ids")))
    assert [s.feeds["ids"].tolist() for s in samples] == [[[5, 6, 7]], [[8, 9]]]
    assert samples[0].feeds["ids"].dtype == np.int32
    assert [int(s.label[0]) for s in samples] == [1, 0]


def test_numeric_columns_make_a_vector(tmp_path):
    (tmp_path / "data.csv").write_text("age,height,label\n3,1.5,0\n4,2.5,1\n")
    declare(tmp_path, '[inputs.x]\ncolumns = ["height", "age"]\n')
    dataset = open_dataset(tmp_path / "data.csv", model_of("float[N,2] x"))
    batch = next(dataset.batches())
    assert batch.feeds["x"].tolist() == [[1.5, 3], [2.5, 4]]
    assert batch.labels.tolist() == [0, 1]


def test_rows_are_found_again_in_any_order(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\ufeffx,label\n" + "".join(f'"{i}",{i}\r\n' for i in range(30)) + "\n", newline="")
    dataset = open_dataset(path, model_of("float[N] x"))
    assert len(dataset) == 30
    assert [s.feeds["x"].tolist() for s in dataset.select([29, 0, 13]).samples()] == [[29.0], [0.0], [13.0]]


def test_text_inputs_stay_text(tmp_path):
    path = rows(tmp_path / "data.jsonl", {"name": "12 monkeys"})
    assert next(open_dataset(path, model_of("string[N] name")).batches()).feeds["name"].tolist() == ["12 monkeys"]


def test_data_without_labels_says_which_columns_there_are(tmp_path):
    dataset = open_dataset(rows(tmp_path / "data.jsonl", {"x": 1.0, "score": 3}), model_of("float[N] x"))
    assert not dataset.labelled
    assert dataset.notes == ["'data.jsonl' has no column 'label' for labels (columns: x, score)"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"x": 1.0}\n{"x": \n', "row 2 is not JSON"),
        ("a.jsonl", "[1, 2]\n", "is not a table"),
        ("a.jsonl", '{"z": 1.0}\n', "row 1 has no column 'x'"),
        ("a.jsonl", '{"x": "many"}\n', "wants numbers"),
        ("a.csv", "x,y\n1,2\n3\n", "1 cells but the header has 2"),
        ("a.csv", "x\n", "no samples"),
        ("a.csv", "x\n\xff\n", "cannot be read"),
        ("a.jsonl", '{"x": NaN}\n', "NaN"),
    ],
)
def test_rows_that_cannot_be_used_are_told(tmp_path, name, content, words):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=words):
        list(open_dataset(tmp_path / name, model_of("float[N] x")).batches())


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[tokenizer]\nfile = "gone.json"', "tokenizer '.*gone.json' cannot be read"),
        ('[tokenizer]\nfiel = "x"', r"\[tokenizer\] there is no key 'fiel'; did you mean 'file'"),
        ("[inputs.y]\nconstant = 1", "no input 'y'"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_told(tmp_path, toml, words):
    declare(tmp_path, toml)
    with pytest.raises(DataError, match=words):
        open_dataset(rows(tmp_path / "data.jsonl", {"x": 1.0}), model_of("float[N] x"))


def test_an_unknown_class_names_the_nearest(tmp_path):
    declare(tmp_path, 'classes = ["neg", "pos"]')
    with pytest.raises(DataError, match="'poss' is no class; did you mean 'pos'"):
        open_dataset(rows(tmp_path / "data.jsonl", {"x": 1.0, "label": "poss"}), model_of("float[N] x"))


def test_rows_mean_nothing_without_a_model(tmp_path):
    with pytest.raises(DataError, match="without a model"):
        open_dataset(rows(tmp_path / "data.jsonl", {"x": 1.0}))
