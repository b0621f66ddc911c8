import numpy as np
import pytest

from pumice.data import ModelInputs, open_dataset
from pumice.errors import DataError, ModelError

IMAGE = "float[N,3,4,4] image"


def sentence(model, feeds) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset([feeds], model)
    text = str(caught.value)
    assert "sample 0" in text
    assert "\n" not in text
    return text


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def test_a_missing_input_is_named_with_the_nearest_one_given(model_of):
    assert "'image' is missing; did you mean 'imge'?" in sentence(model_of(IMAGE), {"imge": ones(1, 3, 4, 4)})


def test_an_input_the_model_does_not_have_is_refused(model_of):
    text = sentence(model_of(IMAGE), {"image": ones(1, 3, 4, 4), "size": ones(1)})
    assert "no input 'size'" in text


def test_a_wrong_shape_tells_both_shapes(model_of):
    text = sentence(model_of(IMAGE), {"image": ones(1, 1, 4, 4)})
    assert "[1, 1, 4, 4]" in text
    assert "[N, 3, 4, 4]" in text


def test_a_sample_without_its_batch_axis_is_told_to_add_it(model_of):
    assert "x[None]" in sentence(model_of(IMAGE), {"image": ones(3, 4, 4)})


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int64"])
def test_a_type_that_is_not_a_lossless_matter_is_refused(model_of, dtype):
    assert f"type {dtype}" in sentence(model_of(IMAGE), {"image": ones(1, 3, 4, 4, dtype=dtype)})


def test_float64_is_converted_and_said(model_of):
    dataset = open_dataset([{"image": ones(1, 3, 4, 4, dtype=np.float64)}] * 3, model_of(IMAGE))
    assert next(dataset.batches()).feeds["image"].dtype == np.float32
    assert dataset.notes == ["input 'image' was converted from float64 to float32"]


@pytest.mark.parametrize(("have", "want"), [("int32", "int64"), ("int64", "int32")])
def test_integer_widths_are_converted(model_of, have, want):
    dataset = open_dataset([{"ids": ones(1, 5, dtype=have)}], model_of(f"{want}[N,T] ids"))
    assert next(dataset.batches()).feeds["ids"].dtype == want


def test_an_integer_that_does_not_fit_is_refused(model_of):
    assert "do not fit int32" in sentence(model_of("int32[N] ids"), {"ids": np.array([2**40])})


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_values_that_are_not_finite_are_told_with_their_place(model_of, value, word):
    image = ones(1, 3, 4, 4)
    image[0, 2, 1, 3] = value
    text = sentence(model_of(IMAGE), {"image": image})
    assert word in text
    assert "[0, 2, 1, 3]" in text


def test_a_bad_sample_deep_in_the_data_is_named(model_of):
    data = np.ones((40, 3, 4, 4), np.float32)
    data[17, 0, 0, 0] = np.nan
    dataset = open_dataset(data, model_of(IMAGE))
    with pytest.raises(DataError, match="sample 17: input 'image' holds NaN"):
        list(dataset.batches())


def test_an_empty_sample_is_refused(model_of):
    assert "is empty" in sentence(model_of("float[N,T] x"), {"x": ones(1, 0)})


def test_initializers_listed_as_inputs_are_not_asked_of_the_data(model_of):
    import onnx_ir as ir

    model = model_of("float[N,2] x,  float[2] w", "float[N,2] y")
    weight = next(v for v in model.graph.inputs if v.name == "w")
    weight.const_value = ir.tensor(np.ones(2, np.float32), name="w")
    model.graph.initializers["w"] = weight
    assert ModelInputs.of(model).names == ("x",)


@pytest.mark.parametrize(
    ("inputs", "outputs", "stacks"),
    [
        ("float[N,3] x", "float[N,3] y", True),
        ("float[batch,3] x,  int64[batch] n", "float[batch,3] y", True),
        ("float[1,3] x", "float[1,3] y", False),
        ("float[T,3] x", "float[T,3] y", False),
        ("float[seq_len,3] x", "float[seq_len,3] y", False),
        ("float[N,3] x,  float[2,N,3] state", "float[N,3] y", False),
        ("float[N,3] x", "float[1,3] y", False),
        ("float[N,3] x,  int64 rate", "float[N,3] y", False),
        ("float[A,3] x,  float[B,3] z", "float[A,3] y", False),
    ],
)
def test_samples_stack_only_where_the_first_axis_is_a_batch(model_of, inputs, outputs, stacks):
    assert ModelInputs.of(model_of(inputs, outputs)).stacks is stacks


def test_a_model_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"no model file '.*gone\.onnx'"):
        ModelInputs.of(tmp_path / "gone.onnx")


def test_a_file_that_is_no_model_is_told(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelError, match="cannot be read"):
        ModelInputs.of(tmp_path / "text.onnx")
